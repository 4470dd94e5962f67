//! Measuring Selvage: the parts of the side-by-side program, of the benches, and of the tests of measured
//! requirements.

pub mod cluster;
pub mod machine;
pub mod measure;
pub mod rdma;
pub mod redis;
pub mod report;
pub mod sample;
pub mod side_by_side;
