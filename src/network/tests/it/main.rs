//! The network against the real kernel: network namespaces, real devices, routes and nftables tables, real
//! connections. Needs root, `ip` and `nft`; runs only with KEDGE_ROOT_TESTS=1. Only the DNS server's tests
//! need none of that.

mod announce;
mod api;
mod dns;
mod flannel;
mod overlay;
mod policies;
mod ports;
mod proxy;
mod services;
mod world;
