//! Who gets in, with what, and what the book says afterwards.

use std::time::Duration;

use super::memory::Memory;
use super::*;
use crate::{Error, TokenOptions, TokenRecord};

struct Book {
    memory: Arc<Memory>,
    registry: Registry,
    _dir: tempfile::TempDir,
}

fn book() -> Book {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Clock::open(&dir.path().join("time-floor")).unwrap());
    let memory = Arc::new(Memory::default());
    Book { registry: Registry::new(memory.clone(), clock), memory, _dir: dir }
}

fn facts(name: &str, address: &str, role: Role) -> NodeFacts {
    NodeFacts {
        name: name.into(),
        role,
        address: address.parse().unwrap(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        failure_domain: None,
    }
}

fn id(number: u64) -> NodeId {
    NodeId::new(number)
}

#[tokio::test]
async fn a_token_admits_one_node_and_that_one_again() {
    let book = book();
    let (token, _) = book.registry.create_token(&TokenOptions::default()).await.unwrap();
    let n1 = facts("n1", "192.0.2.1:25000", Role::ControlPlane);
    let first = book.registry.admit(&token.hash(), id(1), &n1).await.unwrap();
    assert_eq!(book.memory.members().len(), 1);
    let before = book.memory.dump();
    assert_eq!(book.registry.admit(&token.hash(), id(1), &n1).await.unwrap(), first);
    let n2 = facts("n2", "192.0.2.2:25000", Role::Worker);
    assert_eq!(
        book.registry.admit(&token.hash(), id(2), &n2).await,
        Err(Refusal::TokenUsed { by: "n1".into() })
    );
    assert_eq!(book.memory.dump(), before, "neither a repetition nor a refusal changes anything");
    let listed = book.registry.tokens().await.unwrap();
    assert_eq!((listed[0].uses, listed[0].usable), (1, false));
}

#[tokio::test]
async fn a_refused_join_leaves_the_token_usable() {
    let book = book();
    let founder = facts("n1", "192.0.2.1:25000", Role::ControlPlane);
    book.registry.enroll(id(1), &founder).await.unwrap();
    let (token, _) = book.registry.create_token(&TokenOptions::default()).await.unwrap();
    let before = book.memory.dump();
    let same_name = facts("n1", "192.0.2.2:25000", Role::Worker);
    assert_eq!(
        book.registry.admit(&token.hash(), id(2), &same_name).await,
        Err(Refusal::NameTaken { name: "n1".into() })
    );
    let same_address = facts("n2", "192.0.2.1:25000", Role::Worker);
    assert_eq!(
        book.registry.admit(&token.hash(), id(2), &same_address).await,
        Err(Refusal::AddressTaken { address: "192.0.2.1:25000".into(), by: "n1".into() })
    );
    book.memory.refuse(Some(RecordsError::Unsafe("a voter is down".into())));
    let n2 = facts("n2", "192.0.2.2:25000", Role::ControlPlane);
    assert_eq!(
        book.registry.admit(&token.hash(), id(2), &n2).await,
        Err(Refusal::Unsafe { message: "a voter is down".into() })
    );
    book.memory.refuse(None);
    assert_eq!(book.memory.dump(), before);
    book.registry.admit(&token.hash(), id(2), &n2).await.unwrap();
    assert_eq!(book.memory.members().len(), 1);
}

#[tokio::test]
async fn two_nodes_race_with_one_token() {
    for reusable in [false, true] {
        let book = book();
        let options = TokenOptions { reusable, ..TokenOptions::default() };
        let (token, _) = book.registry.create_token(&options).await.unwrap();
        let hash = token.hash();
        let joins = (1..=6).map(|number| {
            let (registry, hash) = (book.registry.clone(), hash.clone());
            async move {
                let facts =
                    facts(&format!("n{number}"), &format!("192.0.2.{number}:25000"), Role::ControlPlane);
                registry.admit(&hash, id(number), &facts).await
            }
        });
        let results = futures::future::join_all(joins).await;
        let admitted = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(admitted, if reusable { 6 } else { 1 });
        assert_eq!(book.memory.members().len(), admitted);
        let used = |result: &Result<NodeRecord, Refusal>| matches!(result, Err(Refusal::TokenUsed { .. }));
        assert!(results.iter().all(|result| result.is_ok() || used(result)), "{results:?}");
    }
}

#[tokio::test]
async fn tokens_are_listed_revoked_and_never_shown() {
    let book = book();
    let options = TokenOptions { ttl: Duration::ZERO, ..TokenOptions::default() };
    let (expired, _) = book.registry.create_token(&options).await.unwrap();
    let (good, record) = book.registry.create_token(&TokenOptions::default()).await.unwrap();
    let stored = format!("{:?}", book.memory.dump());
    assert!(!stored.contains(&good.to_string()) && stored.contains(record.hash.as_str()));
    let listed = book.registry.tokens().await.unwrap();
    assert_eq!(listed.iter().filter(|token| token.usable).count(), 1);
    assert!(!serde_json::to_string(&listed).unwrap().contains(record.hash.as_str()));
    let n1 = facts("n1", "192.0.2.1:25000", Role::Worker);
    let refused = book.registry.admit(&expired.hash(), id(1), &n1).await;
    assert!(matches!(refused, Err(Refusal::TokenExpired { .. })), "{refused:?}");
    assert!(matches!(book.registry.revoke_token("zz").await, Err(Error::NoSuchToken(_))));
    assert!(matches!(book.registry.revoke_token("").await, Err(Error::TokenUnclear(_))));
    let revoked: TokenRecord = book.registry.revoke_token(record.hash.id()).await.unwrap();
    assert_eq!(revoked.hash, record.hash);
    assert_eq!(book.registry.admit(&good.hash(), id(1), &n1).await, Err(Refusal::UnknownToken));
}

#[tokio::test]
async fn a_removed_node_is_told_so_and_its_name_is_free() {
    let book = book();
    for (number, role) in [(1, Role::ControlPlane), (2, Role::ControlPlane), (3, Role::Worker)] {
        let facts = facts(&format!("n{number}"), &format!("192.0.2.{number}:25000"), role);
        book.registry.enroll(id(number), &facts).await.unwrap();
    }
    let unknown = book.registry.remove("n9").await.unwrap_err();
    assert!(unknown.to_string().contains("n1, n2, n3"), "{unknown}");
    for (which, number) in [("192.0.2.3", 3), ("n2", 2)] {
        assert_eq!(book.registry.remove(which).await.unwrap().id, id(number));
        let standing = book.registry.standing(id(number)).unwrap_err();
        assert!(matches!(&standing, Refusal::Removed { .. }), "{standing:?}");
        assert!(standing.to_string().contains("run kedge leave and join again"), "{standing}");
    }
    let again = facts("n2", "192.0.2.2:25000", Role::ControlPlane);
    let refused = book.registry.enroll(id(2), &again).await;
    assert!(matches!(refused, Err(Refusal::Removed { .. })), "{refused:?}");
    book.registry.enroll(id(22), &again).await.unwrap();
    assert_eq!(book.registry.standing(id(99)), Err(Refusal::NotAMember));
}

#[tokio::test]
async fn the_last_control_plane_node_stays() {
    let book = book();
    book.registry.enroll(id(1), &facts("n1", "192.0.2.1:25000", Role::ControlPlane)).await.unwrap();
    book.registry.enroll(id(2), &facts("n2", "192.0.2.2:25000", Role::Worker)).await.unwrap();
    for refused in [book.registry.leave(id(1)).await, book.registry.remove("0000000000000001").await] {
        assert!(matches!(refused, Err(Refusal::Unsafe { .. })), "{refused:?}");
    }
    let refused = book.registry.check_removal(id(1)).await.unwrap_err();
    assert!(refused.to_string().contains("the only control-plane node"), "{refused}");
    assert!(refused.to_string().contains("kedge reset"), "{refused}");
    assert_eq!(book.registry.check_removal(id(2)).await, Ok(()), "a worker holds no copy");
    book.registry.enroll(id(4), &facts("n4", "192.0.2.4:25000", Role::ControlPlane)).await.unwrap();
    assert_eq!(book.registry.check_removal(id(1)).await, Ok(()));
    let unsafe_ = RecordsError::Unsafe("n4 does not answer".into());
    book.memory.refuse(Some(unsafe_));
    let refused = book.registry.check_removal(id(1)).await;
    assert_eq!(refused, Err(Refusal::Unsafe { message: "n4 does not answer".into() }));
    book.memory.refuse(None);
    book.registry.remove("n4").await.unwrap();
    assert_eq!(book.registry.leave(id(2)).await.unwrap().name, "n2");
    assert!(matches!(book.registry.leave(id(2)).await, Err(Refusal::Removed { .. })));
}

#[tokio::test]
async fn a_node_moves_to_another_address() {
    let book = book();
    book.registry.enroll(id(1), &facts("n1", "192.0.2.1:25000", Role::ControlPlane)).await.unwrap();
    book.registry.enroll(id(1), &facts("n1", "192.0.2.7:25000", Role::ControlPlane)).await.unwrap();
    assert_eq!(book.registry.control_plane()[0].address.to_string(), "192.0.2.7:25000");
    book.registry.enroll(id(2), &facts("n2", "192.0.2.1:25000", Role::Worker)).await.unwrap();
    let back = book.registry.enroll(id(1), &facts("n1", "192.0.2.1:25000", Role::ControlPlane)).await;
    assert!(matches!(back, Err(Refusal::AddressTaken { .. })), "{back:?}");
    let before = book.memory.dump();
    book.registry.enroll(id(2), &facts("n2", "192.0.2.1:25000", Role::Worker)).await.unwrap();
    assert_eq!(book.memory.dump(), before, "repeating it changes nothing");
    let other_role = book.registry.enroll(id(2), &facts("n2", "192.0.2.1:25000", Role::ControlPlane)).await;
    assert!(matches!(other_role, Err(Refusal::Forbidden { .. })), "{other_role:?}");
}

#[tokio::test]
async fn two_that_leave_at_once_do_not_leave_nothing() {
    let book = book();
    for number in [1, 2] {
        let facts = facts(&format!("n{number}"), &format!("192.0.2.{number}:25000"), Role::ControlPlane);
        book.registry.enroll(id(number), &facts).await.unwrap();
    }
    let (one, two) = futures::join!(book.registry.leave(id(1)), book.registry.leave(id(2)));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    assert_eq!(book.registry.nodes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn nobody_gets_a_certificate_for_another_nodes_address() {
    let book = book();
    let mut founder = facts("n1", "192.0.2.1:25000", Role::ControlPlane);
    founder.addresses.extend(["2001:db8::1".parse::<std::net::IpAddr>().unwrap(), [127, 0, 0, 1].into()]);
    book.registry.enroll(id(1), &founder).await.unwrap();
    let check = async |number, address: &str| {
        book.registry.check_addresses(id(number), &[address.parse().unwrap()]).await.is_ok()
    };
    assert!(check(1, "192.0.2.1").await);
    assert!(!check(2, "192.0.2.1").await);
    assert!(check(1, "2001:db8::1").await);
    assert!(!check(2, "2001:db8::1").await);
    assert!(check(2, "127.0.0.1").await);
    assert!(check(2, "192.0.2.2").await);
}

#[tokio::test]
async fn a_certificate_of_a_removed_node_stays_refused_when_another_takes_its_name() {
    let book = book();
    let (registry, now) = (&book.registry, book.registry.now().as_second());
    let signed = |ago: i64| now - ago - i64::try_from(BACK_DATED).unwrap();
    registry.enroll(id(1), &facts("n1", "192.0.2.1:25000", Role::ControlPlane)).await.unwrap();
    registry.enroll(id(2), &facts("w", "192.0.2.2:25000", Role::Worker)).await.unwrap();
    assert!(!registry.is_of_departed("w", signed(86_400)), "of a board whose clock was behind: nobody went");
    registry.remove("w").await.unwrap();
    assert!(registry.is_of_departed("w", signed(0)));
    registry.enroll(id(3), &facts("w", "192.0.2.2:25000", Role::Worker)).await.unwrap();
    assert!(registry.is_of_departed("w", signed(3600)), "of the node that was removed");
    assert!(!registry.is_of_departed("w", signed(10)), "signed while it joined");
    assert!(!registry.is_of_departed("w", signed(-3600)), "renewed");
    assert!(!registry.is_of_departed("n1", signed(3600)));
}
