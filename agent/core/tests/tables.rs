//! The tables of the small machines, every state with every input, against what is committed.
//!
//! To write them anew after a change: `BERTH_UPDATE_SNAPSHOTS=1 cargo test -p berth-core`.

#![allow(clippy::panic, reason = "a test that cannot go on fails")]

use berth_core::task::{ContainerInput, ContainerStatus, ResourceInput, ResourceStatus};

/// Compares with the committed table, or writes it.
fn compare(file: &str, committed: &str, table: &str) {
    if std::env::var_os("BERTH_UPDATE_SNAPSHOTS").is_some() {
        let path = format!("{}/tests/snapshots/{file}", env!("CARGO_MANIFEST_DIR"));
        #[expect(clippy::disallowed_methods, reason = "asked to write the snapshot")]
        if let Err(error) = std::fs::write(&path, table) {
            panic!("{path}: {error}");
        }
        return;
    }
    assert!(
        committed == table,
        "{file} is not what the machine does now. If that is meant: \
         BERTH_UPDATE_SNAPSHOTS=1 cargo test -p berth-core\n\n{table}"
    );
}

/// One line for each state, one column for each input; a dot where nothing changes.
fn table<S: Copy + std::fmt::Debug, I: Copy + std::fmt::Debug>(
    states: &[S],
    inputs: &[I],
    on: impl Fn(S, I) -> Option<S>,
) -> String {
    let row = |head: String, cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:<12}")).collect();
        format!("{head:<12}{}", cells.concat()).trim_end().to_owned() + "\n"
    };
    let heads = inputs.iter().map(|input| format!("{input:?}"));
    let mut text = row(String::new(), heads.collect());
    for state in states {
        let cells = inputs
            .iter()
            .map(|input| on(*state, *input).map_or_else(|| ".".to_owned(), |next| format!("{next:?}")));
        text += &row(format!("{state:?}"), cells.collect());
    }
    text
}

#[test]
fn the_machine_of_a_container() {
    use ContainerInput as I;
    let inputs = [
        I::SeenCreated,
        I::SeenRunning,
        I::SeenExited,
        I::SeenMissing,
        I::ToRestart,
        I::Discarded,
        I::GaveUp,
    ];
    // A new input has to be named here: this does not compile without it.
    for input in inputs {
        match input {
            I::SeenCreated | I::SeenRunning | I::SeenExited => {}
            I::SeenMissing | I::ToRestart | I::Discarded | I::GaveUp => {}
        }
    }
    let table = table(&ContainerStatus::ALL, &inputs, ContainerStatus::on);
    compare("container.txt", include_str!("snapshots/container.txt"), &table);
}

#[test]
fn the_machine_of_a_resource() {
    use ResourceInput as I;
    let inputs = [I::Need, I::Drop, I::Succeeded, I::Failed, I::Restart, I::Lost];
    for input in inputs {
        match input {
            I::Need | I::Drop | I::Succeeded => {}
            I::Failed | I::Restart | I::Lost => {}
        }
    }
    let table = table(&ResourceStatus::ALL, &inputs, ResourceStatus::on);
    compare("resource.txt", include_str!("snapshots/resource.txt"), &table);
}

#[test]
fn no_way_leads_back_from_the_end() {
    use ContainerInput as C;
    for input in
        [C::SeenCreated, C::SeenRunning, C::SeenExited, C::SeenMissing, C::ToRestart, C::Discarded, C::GaveUp]
    {
        assert_eq!(ContainerStatus::Stopped.on(input), None, "{input:?}");
    }
    use ResourceInput as R;
    for input in [R::Need, R::Drop, R::Succeeded, R::Failed, R::Restart, R::Lost] {
        assert_eq!(ResourceStatus::Gone.on(input), None, "{input:?}");
    }
}
