//! RDMA over real devices: two of them, `rxe0` and `rxe1`, that reach each other. `cargo x rdma-test` runs
//! these in a guest that has them; without them they fail.

mod access;
mod conformance;
mod device;
mod door;
mod fence;
mod idle;
mod limits;
mod pushes;
mod rave;
mod rules;
mod segment;
mod support;
mod trespass;
