//! Sends transactions and says which object the kernel refused, and why.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::{
    Batch, DELCHAIN, DELRULE, DELSET, DELSETELEM, DELTABLE, FAMILY_INET, GETRULE, GETSETELEM, NEWCHAIN,
    NEWRULE, NEWSET, NEWSETELEM, NEWTABLE, header, kind,
};
use crate::netlink::{
    Builder, Message, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR, Protocol, Socket, attribute, attributes,
    messages, text,
};

/// A batch below this size fits every system's default socket buffer.
const SMALL: usize = 64 * 1024;

/// One message of a transaction that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Its place in the batch.
    pub(crate) sequence: u32,
    pub(crate) errno: i32,
    what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, Errno::from_raw(self.errno).desc())
    }
}

/// Why a transaction did not take place. The kernel then changed nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransactionError {
    #[error("nftables transaction could not be sent")]
    Io(#[from] io::Error),
    #[error("the kernel refused the nftables transaction: {}", list(.0))]
    Refused(Vec<Failure>),
    #[error("the kernel did not confirm the nftables transaction")]
    NotConfirmed,
}

fn list(failures: &[Failure]) -> String {
    let mut text: Vec<String> = failures.iter().take(5).map(Failure::to_string).collect();
    if failures.len() > text.len() {
        text.push(format!("and {} more", failures.len() - text.len()));
    }
    text.join("; ")
}

/// The socket that all of this process's changes go through, so that they can be told from others'.
#[derive(Debug)]
pub(crate) struct Writer {
    socket: Socket,
}

impl Writer {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter, 0)? })
    }

    /// What notifications of our own changes carry.
    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// All of it or nothing. Blocks for as long as the kernel works on it, usually milliseconds.
    pub(crate) fn commit(&self, batch: Batch) -> Result<(), TransactionError> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.last_sequence();
        let built = batch.finish();
        if built.len() > SMALL {
            self.socket.reserve_send(built.len())?;
        }
        let mut buffer = Vec::new();
        // Leftovers of a transaction whose answers could not all be read.
        while self.socket.receive(&mut buffer, false)?.is_some() {}
        self.socket.send(built.bytes())?;

        // The kernel queues every answer before `send` returns: when nothing is left, nothing comes.
        let (mut confirmed, mut failures) = (false, Vec::new());
        while let Some(received) = self.socket.receive(&mut buffer, false)? {
            for message in messages(received).filter(|message| message.kind == NLMSG_ERROR) {
                match message.errno() {
                    0 => confirmed |= message.sequence == last,
                    errno => failures.push(failure(&built, message.sequence, errno)),
                }
            }
        }
        if !failures.is_empty() {
            return Err(TransactionError::Refused(failures));
        }
        if confirmed { Ok(()) } else { Err(TransactionError::NotConfirmed) }
    }

    /// The elements of a set that was filled by rules; none when there is no such set.
    pub(crate) fn remembered(&self, table: &str, set: &str) -> io::Result<Remembered> {
        let mut request = Builder::default();
        request.begin(kind(GETSETELEM), NLM_F_REQUEST | NLM_F_DUMP, 1);
        request.raw(&header(FAMILY_INET));
        request.string(1, table);
        request.string(2, set);
        request.end();
        let mut found = Vec::new();
        let dumped = self.socket.dump(request.bytes(), |message| {
            if let Some(list) = attribute(message.attributes(4), 3) {
                found.extend(remembered(list));
            }
        });
        match dumped {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(_) => Ok(found),
        }
    }

    /// How many rules a chain has; 0 when there is no such chain.
    pub(crate) fn rule_count(&self, table: &str, chain: &str) -> io::Result<usize> {
        let mut request = Builder::default();
        request.begin(kind(GETRULE), NLM_F_REQUEST | NLM_F_DUMP, 1);
        request.raw(&header(FAMILY_INET));
        request.string(1, table);
        request.string(2, chain);
        request.end();
        let mut count = 0;
        self.socket.dump(request.bytes(), |message| {
            count += usize::from(message.kind == kind(NEWRULE));
        })?;
        Ok(count)
    }
}

/// Elements of a set that leave it by themselves: keys, and milliseconds until then.
pub(crate) type Remembered = Vec<(Vec<u8>, u64)>;

pub(super) fn remembered(list: &[u8]) -> Remembered {
    let element = |(_, element): (u16, &[u8])| {
        let parts = attributes(element);
        let key = attribute(attributes(attribute(parts, 1)?), 1)?.to_vec();
        // NFTA_SET_ELEM_EXPIRATION
        let left = u64::from_be_bytes(attribute(parts, 5)?.try_into().ok()?);
        (left > 0).then_some((key, left))
    };
    attributes(list).filter_map(element).collect()
}

fn failure(built: &Builder, sequence: u32, errno: i32) -> Failure {
    let what = messages(built.bytes())
        .find(|message| message.sequence == sequence)
        .map_or_else(|| "transaction".to_owned(), |message| describe(&message));
    Failure { sequence, errno, what }
}

pub(super) fn describe(message: &Message<'_>) -> String {
    let (verb, name_kind) = [
        (NEWTABLE, "add table", 1),
        (DELTABLE, "delete table", 1),
        (NEWCHAIN, "add chain", 3),
        (DELCHAIN, "delete chain", 3),
        (NEWRULE, "add rule to chain", 2),
        (DELRULE, "flush chain", 2),
        (NEWSET, "add set", 2),
        (DELSET, "delete set", 2),
        (NEWSETELEM, "add elements to set", 2),
        (DELSETELEM, "delete elements of set", 2),
    ]
    .into_iter()
    .find(|(number, ..)| kind(*number) == message.kind)
    .map_or(("transaction", 1), |(_, verb, name_kind)| (verb, name_kind));
    match attribute(message.attributes(4), name_kind) {
        Some(name) => format!("{verb} {}", text(name)),
        None => verb.to_owned(),
    }
}

/// Remove the table with all that is in it. False when there was none.
pub(crate) fn delete_table(table: &str) -> Result<bool, TransactionError> {
    let mut batch = Batch::new(table);
    batch.delete_table();
    match Writer::open()?.commit(batch) {
        Ok(()) => Ok(true),
        Err(TransactionError::Refused(failures))
            if failures.iter().all(|failure| failure.errno == Errno::ENOENT as i32) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_elements_are_read_as_they_are_written() {
        let mut batch = Batch::new("kedge");
        batch.restore_elements("set", vec![(vec![192, 0, 2, 7], 1234), (vec![192, 0, 2, 8], 5)]);
        let built = batch.finish();
        let message = messages(built.bytes()).nth(1).unwrap();
        let list = attribute(message.attributes(4), 3).unwrap();
        assert_eq!(remembered(list), [(vec![192, 0, 2, 7], 1234), (vec![192, 0, 2, 8], 5)]);
    }

    #[test]
    fn a_refusal_names_the_object() {
        let mut batch = Batch::new("kedge");
        batch.add_table();
        batch.add_chain("service-1", None, "");
        batch.delete_chain("endpoint-2");
        let built = batch.finish();
        let failure = failure(&built, 3, Errno::EBUSY as i32);
        assert_eq!(failure.to_string(), "delete chain endpoint-2: Device or resource busy");
        let error = TransactionError::Refused(vec![failure]);
        assert_eq!(
            error.to_string(),
            "the kernel refused the nftables transaction: delete chain endpoint-2: Device or resource busy"
        );
    }
}
