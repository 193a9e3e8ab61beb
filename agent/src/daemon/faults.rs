//! What tasks may do to their own networks on this host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::place::Place;
use crate::fault::kernel::Kernel;
use crate::fault::off::Off;
use crate::fault::{Faults, Kind};
use crate::supervise::Tracker;

/// With the kinds that work. `endpoint` is where tasks ask for them; what they did before it was gone is undone all
/// the same.
pub(super) fn choose(
    kinds: BTreeSet<Kind>,
    endpoint: Option<IpAddr>,
    data_dir: &Path,
    place: &Place,
    tracker: &Tracker,
) -> Arc<dyn Faults> {
    if kinds.is_empty() {
        return Arc::new(Off);
    }
    let agent = place.data_dir.display().to_string();
    Arc::new(Kernel::new(kinds, &agent, data_dir, endpoint, tracker.child()))
}
