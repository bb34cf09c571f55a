//! The little of netlink that this crate needs: building and reading messages, and a socket that
//! sends requests and collects answers. Knows nothing of nftables, links or connections.

mod message;
mod socket;

pub(crate) use message::{
    Builder, Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NLMSG_ERROR, attribute, attributes, messages, text,
};
pub(crate) use socket::{Protocol, Socket};
