//! The ledger: who was granted what, and who waits for what.
