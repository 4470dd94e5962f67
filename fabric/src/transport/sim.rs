//! A deterministic, seeded link over private memory that can stop, tear, delay or drop any write.
