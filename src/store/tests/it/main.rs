//! The store against crashes and damaged files, as a caller sees it.

mod basics;
mod crash;
mod damage;
mod full;
mod kill;
mod load;
mod model;
