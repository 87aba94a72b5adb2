//! RFC 4787 REQ-14, RFC 5722: packets in pieces.

use nat::fragments::cut;
use nat::{Account, Config, Entry, Gathered, Ingress, Owner, Rules};

use crate::lab::{ALICE, Lab, NET, UPLINK};
use crate::wire::{ACK, RST, SYN, SYN_ACK, control, error, read, udp};

const INSIDE: Ingress = Ingress { zone: NET, inside: true, account: ALICE, mtu: 1500 };
const OUTSIDE: Ingress = Ingress { zone: UPLINK, inside: false, account: Account(0), mtu: 1500 };

const V4: [&str; 2] = ["172.18.0.2:40000", "198.51.100.2:9"];
const V6: [&str; 2] = ["[fd00:18::2]:40000", "[2001:db8:9::1]:9"];

fn pieces(packet: &[u8], mtu: u16, id: u32) -> Vec<Vec<u8>> {
    cut(packet, &Lab::parse(packet), mtu, id).unwrap()
}

fn gather(lab: &Lab, piece: &[u8], ingress: &Ingress) -> Gathered {
    lab.nat.gather(piece, &Lab::parse(piece), ingress, lab.now)
}

/// Every order of `n` things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    let shorter = orders(n - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut longer = order.clone();
        longer.insert(at, n - 1);
        longer
    };
    shorter.iter().flat_map(|order| (0..n).map(move |at| insert(order, at))).collect()
}

#[test]
fn u14_pieces_are_translated_in_any_order() {
    for [from, to] in [V4, V6] {
        let payload: Vec<u8> = (0..2500).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let packet = udp(from, to, &payload);
        for order in orders(4) {
            let mut lab = Lab::default();
            let pieces = pieces(&packet, 800, 42);
            assert_eq!(pieces.len(), 4);
            let mut whole = None;
            for (nth, piece) in order.iter().enumerate() {
                match gather(&lab, &pieces[*piece], &INSIDE) {
                    Gathered::Kept => assert!(nth < 3),
                    Gathered::Complete(complete) => whole = Some(complete),
                    Gathered::Refused => panic!("piece {piece}"),
                }
            }
            let whole = whole.expect("all are there");
            assert_eq!(lab.nat.fragment_octets(), 0);
            let largest = Some(whole.largest);
            let sent = lab.pass_whole(&whole.packet, &INSIDE, largest).unwrap();
            assert!(sent.len() >= 4, "{}", sent.len());
            assert!(sent.iter().all(|piece| piece.len() <= 800));
            // Whoever gets them reads what was sent.
            let other = Lab::default();
            let joined = sent.iter().find_map(|piece| match gather(&other, piece, &OUTSIDE) {
                Gathered::Complete(whole) => Some(whole.packet),
                _ => None,
            });
            let seen = read(&joined.unwrap());
            assert_eq!(seen.src.port(), 40_000);
            assert_eq!(seen.body[8..], payload);
        }
    }
}

#[test]
fn u14_a_piece_that_comes_twice_is_one() {
    let lab = Lab::default();
    let pieces = pieces(&udp(V4[0], V4[1], &[7; 2000]), 800, 1);
    assert!(matches!(gather(&lab, &pieces[0], &INSIDE), Gathered::Kept));
    assert!(matches!(gather(&lab, &pieces[0], &INSIDE), Gathered::Kept));
    assert!(matches!(gather(&lab, &pieces[2], &INSIDE), Gathered::Kept));
    assert!(matches!(gather(&lab, &pieces[1], &INSIDE), Gathered::Complete(_)));
}

#[test]
fn r5722_pieces_that_overlap_condemn_their_packet() {
    for [from, to] in [V4, V6] {
        let lab = Lab::default();
        let honest = pieces(&udp(from, to, &[7; 2000]), 800, 1);
        let forged = pieces(&udp(from, to, &[8; 2000]), 600, 1);
        assert!(matches!(gather(&lab, &honest[0], &INSIDE), Gathered::Kept));
        assert!(matches!(gather(&lab, &forged[1], &INSIDE), Gathered::Refused));
        for piece in &honest {
            assert!(matches!(gather(&lab, piece, &INSIDE), Gathered::Refused));
        }
    }
}

#[test]
fn u14_orphans_cost_their_sender_only() {
    let mut lab = Lab::default();
    let flood = Ingress { account: Account(666), ..INSIDE };
    for id in 0..10_000 {
        let mut packet = udp(V4[0], V4[1], &[7; 1400]);
        packet[4..6].copy_from_slice(&u16::to_be_bytes(id));
        let first = &pieces(&packet, 800, 0)[0];
        assert!(!matches!(gather(&lab, first, &flood), Gathered::Complete(_)));
        assert!(lab.nat.fragment_octets() <= 4 << 20);
    }
    // Whole packets are not concerned, and another's pieces find room.
    lab.out(&udp(V4[0], V4[1], b"whole"));
    let own = pieces(&udp(V4[0], V4[1], &[9; 1400]), 800, 0);
    assert!(matches!(gather(&lab, &own[1], &INSIDE), Gathered::Kept));
    assert!(matches!(gather(&lab, &own[0], &INSIDE), Gathered::Complete(_)));
    // The newest of the flood's own is still there, the oldest is not.
    lab.wait(61);
    for _ in 0..10_000 {
        lab.nat.expire(lab.now);
    }
    assert_eq!(lab.nat.fragment_octets(), 0, "forgotten in time");
}

#[test]
fn u14_pieces_wait_for_half_a_minute() {
    let mut lab = Lab::default();
    let pieces = pieces(&udp(V4[0], V4[1], &[7; 1400]), 800, 1);
    assert!(matches!(gather(&lab, &pieces[1], &INSIDE), Gathered::Kept));
    lab.wait(31);
    assert!(matches!(gather(&lab, &pieces[0], &INSIDE), Gathered::Kept));
    lab.wait(29);
    assert!(matches!(gather(&lab, &pieces[1], &INSIDE), Gathered::Complete(_)));
}

/// RFC 6946: a fragment header that makes a piece of nothing may stand before one that does.
#[test]
fn a_piece_behind_an_atomic_fragment_is_a_piece() {
    let lab = Lab::default();
    let [from, to] = V6;
    let payload: Vec<u8> = (0..1400).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let gathered = pieces(&udp(from, to, &payload), 800, 42).into_iter().map(|mut piece| {
        let atomic = [piece[6], 0, 0, 0, 0, 0, 0, 9];
        piece.splice(40..40, atomic);
        let len = u16::try_from(piece.len() - 40).unwrap();
        piece[4..6].copy_from_slice(&len.to_be_bytes());
        gather(&lab, &piece, &INSIDE)
    });
    let Some(Gathered::Complete(whole)) = gathered.last() else { panic!("not whole") };
    let headers = Lab::parse(&whole.packet);
    assert_eq!((headers.protocol, headers.piece), (nat::Protocol::Udp, None));
    assert_eq!(whole.packet[headers.transport + 8..headers.end], payload);
}

#[test]
fn pieces_that_lie_about_their_length_are_refused() {
    let lab = Lab::default();
    let pieces = pieces(&udp(V4[0], V4[1], &[7; 1400]), 800, 1);
    // One that others follow must end on an eighth octet.
    let mut uneven = pieces[0].clone();
    uneven.truncate(uneven.len() - 1);
    let len = u16::try_from(uneven.len()).unwrap();
    uneven[2..4].copy_from_slice(&len.to_be_bytes());
    crate::wire::sign_v4(&mut uneven);
    assert!(matches!(gather(&lab, &uneven, &INSIDE), Gathered::Refused));
    // One that would make the packet longer than packets are.
    let mut far = pieces[1].clone();
    far[6..8].copy_from_slice(&0x1fff_u16.to_be_bytes());
    crate::wire::sign_v4(&mut far);
    assert!(matches!(gather(&lab, &far, &INSIDE), Gathered::Refused));
}

/// Where nothing is translated: one piece is never seen, the others come in any order, and one that is too long
/// for the way is cut again (RFC 1812 §5.2.6, §4.2.2.7).
#[test]
fn a_router_passes_pieces_one_by_one() {
    let mut lab = router();
    for [from, to] in [V4, V6] {
        let packet = udp(from, to, &[7; 2500]);
        let pieces = pieces(&packet, 808, 42);
        for piece in [&pieces[3], &pieces[1], &pieces[0]] {
            assert!(lab.nat.routes_pieces(ALICE));
            assert_eq!(lab.pass(piece, &INSIDE).unwrap(), *piece);
        }
    }
    let whole = udp(V4[0], V4[1], &[7; 2500]);
    let pieces = pieces(&whole, 1400, 42);
    lab.mtu = 808;
    let again = lab.pass_in_pieces(&pieces[0], &INSIDE).unwrap();
    assert_eq!(again.len(), 2);
    let gathering = Lab::default();
    for piece in &again {
        assert!(matches!(gather(&gathering, piece, &INSIDE), Gathered::Kept));
    }
    let Gathered::Complete(seen) = gather(&gathering, &pieces[1], &INSIDE) else { panic!("lost") };
    assert_eq!(Lab::parse(&seen.packet).end, whole.len());
    // Where an owner may wait for them, they are put together.
    let flow = Lab::parse(&udp(V4[0], "198.51.100.3:9", b"")).tuple().unwrap();
    let owned = Entry::new(NET, nat::Direction::Original, flow, flow.inverse(), Owner(7), lab.now);
    let owned = lab.nat.conntrack().insert(ALICE, owned).unwrap();
    assert!(!lab.nat.routes_pieces(ALICE) && lab.nat.routes_pieces(Account(9)));
    lab.nat.conntrack().remove(&owned);
    assert!(lab.nat.routes_pieces(ALICE));
}

/// Where nothing is translated, another way may carry what is not seen here.
#[test]
fn a_router_refuses_nothing_it_has_not_seen_the_beginning_of() {
    let mut lab = router();
    let [inside, far] = ["172.18.0.2:4000", "198.51.100.2:80"];
    lab.out(&control(inside, far, SYN_ACK, 9, 5)).goes(inside, far);
    lab.out(&control(inside, far, RST, 9, 0)).goes(inside, far);
    lab.out(&control(inside, far, SYN, 100, 0)).goes(inside, far);
    lab.back(&control(far, inside, SYN_ACK, 500, 101)).goes(far, inside);
    lab.out(&control(inside, far, ACK, 101, 501)).goes(inside, far);
    lab.out(&control(inside, far, ACK, 2_000_000_000, 501)).goes(inside, far);
    lab.back(&control(far, inside, ACK, 500, 2_000_000_000)).goes(far, inside);
    let unknown = udp("172.18.0.2:4001", "198.51.100.2:9", b"by another way");
    let told = lab.back(&error("198.51.100.1", "172.18.0.2", (3, 3), 0, &unknown));
    assert_eq!(told.dst.ip().to_string(), "172.18.0.2");
}

fn router() -> Lab {
    let lab = Lab::with(Config { open: true, ..Config::new(UPLINK, [0; 16]) });
    lab.nat.set_rules(Rules::new(vec![], vec![]));
    lab
}
