//! What placement promises.
