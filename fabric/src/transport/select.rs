//! The choice of transport for a pair of node and server.
