//! Whole-binary tests: each test starts a real node and is one scenario with named steps, because starting
//! a node for every single assertion would take hours on a small machine. Run them with `./test.sh e2e`.

#![allow(clippy::print_stderr, reason = "a test's story is what it prints")]

mod access;
mod addons;
mod alive;
mod authority;
mod backup;
mod bad_input;
mod binary;
mod cli;
mod cluster;
mod conformance;
mod damage;
mod dual_stack;
mod encryption;
mod evictions;
mod faults;
mod flanneld;
mod helm;
mod images;
mod joining;
mod kubelet;
mod kubernetes_suite;
mod load_balancer;
mod machine;
mod metrics;
mod node;
mod operations;
mod pod_network;
mod policies;
mod probes;
mod registries;
mod resize;
mod results;
mod semantics;
mod storage;
mod streams;
mod survival;
mod tour;
mod volumes;
