//! The ways in that the README shows, with the programs of others and with the README's own texts.
//!
//! ```sh
//! cargo test -p tracemesh-tests --test ways_in
//! ```
//!
//! Each case is a mesh of three and one way to send to it. However the spans came, every span that
//! was sent comes out once, and every trace whole.

mod answers;
mod balancers;
mod collectors;
mod generator;
mod mesh;
mod sdks;
