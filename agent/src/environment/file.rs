//! Environment files: `NAME=value` lines.

/// The lines that are variables, each name once; comments, empty lines and lines without `=` are none
/// (ECS developer guide, "Pass environment variables to a container"). Spaces and quotes belong to the
/// value.
pub(super) fn variables(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let name = name.trim();
        if name.is_empty() || value.contains('\0') {
            continue;
        }
        match found.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => value.clone_into(&mut entry.1),
            None => found.push((name.to_owned(), value.to_owned())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_variables_as_they_stand() {
        let text =
            "# comment\n\nA=1\r\nB= two words \nQUOTED=\"x\"\nno variable\n=empty\nURL=a=b\nA=2\n  #A=3\n";
        let pairs = [("A", "2"), ("B", " two words "), ("QUOTED", "\"x\""), ("URL", "a=b")];
        let expected: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(variables(text), expected);
    }
}
