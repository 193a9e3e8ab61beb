//! The operator's own terminal while a program in a container has it.

use std::io::{IsTerminal, stdin, stdout};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Whether somebody sits there.
#[must_use]
pub(super) fn is_there() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Its size in columns and rows.
#[must_use]
pub(super) fn size() -> Option<(u32, u32)> {
    let size = rustix::termios::tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

/// The terminal passes every key on as it is, until this is dropped.
pub(super) struct Raw(Option<Termios>);

impl Raw {
    /// Begins.
    #[must_use]
    pub(super) fn begin() -> Self {
        let Ok(before) = tcgetattr(stdin()) else { return Self(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let set = tcsetattr(stdin(), SetArg::TCSANOW, &raw);
        Self(set.is_ok().then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // There is nobody left to tell.
            let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, before);
        }
    }
}
