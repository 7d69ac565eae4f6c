//! What the explorer promises of itself.
