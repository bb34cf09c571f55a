//! Netlink messages as bytes: a builder with nested attributes and a reader that never panics on
//! what it is given. Layout: linux/netlink.h.

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

/// Writes messages one after the other into one buffer.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
    start: usize,
}

impl Builder {
    /// Start a message; the one before must have been ended.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, sequence: u32) {
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
    }

    /// Fill in the length of the message that was begun last.
    pub(crate) fn end(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Add flags to the message that was begun last.
    pub(crate) fn or_flags_of_last(&mut self, flags: u16) {
        let at = self.start + 6;
        if self.bytes.len() >= at + 2 {
            let old = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
            self.bytes[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
        }
    }

    /// Raw bytes, padded: the fixed header of a protocol.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    pub(crate) fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
    }

    /// A string with its terminating zero.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let length = u16::try_from(value.len() + 5).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// netfilter's integers are in network byte order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// What `fill` writes becomes the content of one attribute. The content must stay below 64 KiB.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }
}

/// One message that was received, or one of a batch that was built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The port of the socket whose request this is about; 0 is the kernel.
    pub(crate) port: u32,
    /// What follows the netlink header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after a fixed header of `skip` bytes.
    pub(crate) fn attributes(&self, skip: usize) -> Attributes<'a> {
        attributes(self.body.get(skip..).unwrap_or_default())
    }

    /// For an error message: the (positive) errno, 0 for an acknowledgement.
    pub(crate) fn errno(&self) -> i32 {
        self.body.get(..4).map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]).wrapping_neg())
    }
}

/// The messages in a buffer; what is cut short ends the iteration.
pub(crate) fn messages(bytes: &[u8]) -> Messages<'_> {
    Messages(bytes)
}

pub(crate) struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER)?;
        let length = usize::try_from(word(header, 0)).ok()?;
        let body = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: word(header, 8),
            port: word(header, 12),
            body,
        };
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(message)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The attributes in a buffer, as (kind without flags, payload).
pub(crate) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let header = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The payload of the first attribute of this kind.
pub(crate) fn attribute(mut attributes: Attributes<'_>, kind: u16) -> Option<&[u8]> {
    attributes.find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// A string attribute without its terminating zero.
pub(crate) fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let mut builder = Builder::default();
        builder.begin(7, NLM_F_REQUEST, 3);
        builder.raw(&[1, 0, 0, 10]);
        builder.string(1, "kedge");
        builder.nested(4, |b| {
            b.be32(1, 5);
            b.attribute(2, &[9]);
        });
        builder.end();
        builder.begin(8, 0, 4);
        builder.end();
        assert_eq!(builder.len() % 4, 0);

        let read: Vec<Message<'_>> = messages(builder.bytes()).collect();
        assert_eq!(read.iter().map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(7, 3), (8, 4)]);
        let outer = read[0].attributes(4);
        assert_eq!(text(attribute(outer, 1).unwrap()), "kedge");
        let inner = attributes(attribute(outer, 4).unwrap());
        assert_eq!(attribute(inner, 1).unwrap(), [0, 0, 0, 5]);
        assert_eq!(attribute(inner, 2).unwrap(), [9]);
        assert!(attribute(inner, 3).is_none());
    }

    #[test]
    fn damaged_input_ends_the_iteration() {
        let mut builder = Builder::default();
        builder.begin(7, 0, 1);
        builder.string(1, "abc");
        builder.end();
        let whole = builder.bytes();
        for cut in 0..whole.len() {
            assert_eq!(messages(&whole[..cut]).count(), 0, "cut at {cut}");
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of zero");
        assert_eq!(attributes(&[2, 0, 1, 0, 0, 0]).count(), 0, "a length below the header");
    }

    #[test]
    fn errors_carry_a_positive_errno() {
        let body = (-16i32).to_ne_bytes();
        let message = Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, port: 0, body: &body };
        assert_eq!(message.errno(), 16);
    }
}
