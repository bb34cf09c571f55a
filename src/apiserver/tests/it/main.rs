//! The API server as a client sees it: the real router, watch cache and store, without sockets.

mod admission;
mod conformance;
mod custom;
mod fixture;
mod identity;
mod mutations;
mod reads;
mod remote;
mod rules;
mod writes;
