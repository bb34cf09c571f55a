//! The store against crashes, damaged files and other members, as a caller sees it.

mod basics;
mod crash;
mod damage;
mod full;
mod group;
mod kill;
mod load;
mod model;
mod net;
