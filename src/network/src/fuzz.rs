//! What fuzz/ calls: DNS messages, netlink messages, what nodes say of the pod network.

use crate::netlink::{attribute, attributes, messages, text};

pub use crate::dns::fuzz::{answer, name, question, question_seeds};
pub use crate::overlay::fuzz::{lease, net_conf};

/// What the kernel sends over netlink: interfaces, addresses, routes, neighbours, nftables and flows.
pub fn netlink(data: &[u8]) {
    let mut total = 0;
    for message in messages(data) {
        total += message.body.len();
        let _ = message.errno();
        crate::rt::fuzz::message(&message);
        crate::nft::fuzz::message(&message);
        crate::proxy::fuzz::message(&message);
        for (_, payload) in message.attributes(4) {
            let _ = (text(payload), attribute(attributes(payload), 1));
        }
    }
    assert!(total <= data.len());
}

/// A link, an address, a route, a neighbour, a chain, a rule and a flow, as the kernel would send them.
pub fn netlink_seeds() -> Vec<Vec<u8>> {
    use crate::netlink::Builder;
    let message = |kind: u16, header: &[u8], fill: &dyn Fn(&mut Builder)| {
        let mut out = Builder::default();
        out.begin(kind, 0, 1);
        out.raw(header);
        fill(&mut out);
        out.end();
        out.bytes().to_vec()
    };
    let mut seeds = vec![
        message(16, &[0; 16], &|out| {
            out.string(3, "kedge0");
            out.attribute(4, &1450_u32.to_ne_bytes());
            out.attribute(1, &[2, 0, 0, 0, 0, 1]);
            out.nested(18, |out| {
                out.string(1, "vxlan");
                out.nested(2, |out| {
                    out.attribute(1, &1_u32.to_ne_bytes());
                    out.attribute(4, &[192, 0, 2, 1]);
                    out.attribute(15, &8472_u16.to_be_bytes());
                });
            });
        }),
        message(20, &[2, 24, 0, 0, 1, 0, 0, 0], &|out| {
            out.attribute(1, &[10, 0, 0, 1]);
            out.attribute(2, &[10, 0, 0, 1]);
        }),
        message(24, &[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], &|out| {
            out.attribute(1, &[10, 1, 0, 0]);
            out.attribute(4, &3_u32.to_ne_bytes());
            out.attribute(5, &[192, 0, 2, 2]);
        }),
        message(28, &[2, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 1], &|out| {
            out.attribute(1, &[192, 0, 2, 2]);
            out.attribute(2, &[2, 0, 0, 0, 0, 1]);
        }),
    ];
    let tuple = |out: &mut Builder| {
        out.nested(1, |out| {
            out.attribute(1, &[10, 0, 0, 1]);
            out.attribute(2, &[10, 0, 0, 2]);
        });
        out.nested(2, |out| {
            out.attribute(1, &[17]);
            out.attribute(2, &53_u16.to_be_bytes());
            out.attribute(3, &53_u16.to_be_bytes());
        });
    };
    seeds.push(message(0x100, &[2, 0, 0, 0], &|out| {
        out.nested(1, tuple);
        out.nested(2, tuple);
    }));
    seeds.extend(crate::nft::fuzz::seeds());
    seeds
}
