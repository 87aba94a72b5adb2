//! Every requirement and the probes that ask for it between namespaces, by each uplink; or the words of
//! README.md that say who else has it. `nat/tests/conformance/table.rs` is the same for what is held in memory.

use std::collections::BTreeSet;
use std::fs;

use libtest_mimic::Failed;

use crate::Subject;

/// A requirement, the probes, and what README.md says of the uplink no probe asks: sockets, raw.
type Requirement =
    (&'static str, &'static [&'static str], Option<&'static str>, Option<&'static str>);

/// What a bridge is asked is no uplink's: by which tests in memory.
type InMemory = (&'static str, &'static [&'static str]);

const REQUIREMENTS: &[Requirement] = &[
    (
        "U1",
        &[
            "all_hosts_and_ports_see_one_external_port",
            "stun_finds_an_endpoint_independent_mapping",
        ],
        None,
        None,
    ),
    (
        "U2",
        &["all_flows_of_a_container_have_one_external_address"],
        Some("RFC 4787 REQ-2 (pairing)"),
        None,
    ),
    (
        "U3",
        &[
            "two_containers_with_one_port_get_two_external_ports",
            "nobodys_mapping_takes_a_published_port",
        ],
        None,
        None,
    ),
    (
        "U3a",
        &["a_well_known_port_becomes_a_well_known_port"],
        Some("Ports below 1024 need what any process"),
        None,
    ),
    ("U4", &["a_port_that_is_taken_becomes_one_of_the_same_parity"], None, None),
    ("U4b", &["the_port_inside_is_the_port_outside"], None, None),
    ("U5", &["a_mapping_lasts_its_time_and_no_longer", "the_times_are_the_rfcs"], None, None),
    ("U6", &["what_goes_out_keeps_a_mapping", "what_comes_in_does_not_keep_a_mapping"], None, None),
    ("U7", &[], Some("A subnet nobody chose"), Some("A subnet nobody chose")),
    (
        "U8",
        &[
            "whoever_was_not_sent_to_is_not_let_in",
            "by_choice_anybody_may_come_in",
            "by_choice_only_the_very_port_may_answer",
        ],
        None,
        None,
    ),
    (
        "U9",
        &[
            "two_inside_meet_by_their_external_addresses",
            "one_meets_itself_by_its_external_address",
        ],
        None,
        None,
    ),
    ("U10", &["payload_with_addresses_in_it_is_left_alone"], None, None),
    ("U11", &["a_thousand_flows_keep_to_one_behaviour"], None, None),
    (
        "U12",
        &["errors_do_not_end_a_udp_mapping", "an_error_about_an_answer_comes_in_as_it_is_inside"],
        None,
        None,
    ),
    (
        "U13",
        &["what_is_too_big_for_a_link_far_away_is_told_of", "what_may_be_cut_is_cut_and_arrives"],
        None,
        None,
    ),
    (
        "U14",
        &[
            "pieces_go_out_in_any_order",
            "pieces_come_in_in_any_order",
            "overlapping_pieces_are_dropped_on_the_way_out",
            "a_flood_of_orphans_inwards_stops_nothing_else",
        ],
        None,
        None,
    ),
    ("T1", &["connections_from_one_port_have_one_external_port"], None, None),
    (
        "T2",
        &[
            "simultaneous_open_connects",
            "a_connection_opens_carries_and_closes_in_order",
            "both_may_end_at_once",
        ],
        None,
        None,
    ),
    ("T3", &["a_segment_of_a_stranger_is_not_let_in"], None, None),
    (
        "T4",
        &["an_unsolicited_syn_is_answered_after_six_seconds_by_icmp"],
        Some("RFC 5382 REQ-4"),
        None,
    ),
    (
        "T5",
        &["a_silent_connection_lasts_its_time", "an_attempt_lasts_its_time"],
        Some("RFC 5382 REQ-5"),
        None,
    ),
    ("T6", &["payload_with_addresses_in_it_is_left_alone"], None, None),
    ("T7", &["two_containers_with_one_port_do_not_share_the_external_one"], None, None),
    ("T8", &["a_container_reaches_a_published_port_of_another_and_its_own"], None, None),
    ("T9", &["an_error_about_a_syn_comes_in"], None, None),
    ("T10", &["icmp_errors_do_not_end_a_connection"], None, None),
    (
        "RFC 7857 2.1",
        &["the_times_are_the_rfcs", "a_port_connects_again_once_its_connection_has_ended"],
        None,
        None,
    ),
    (
        "RFC 7857 2.2",
        &["a_reset_outside_the_window_ends_nothing", "the_far_sides_reset_arrives_in_sequence"],
        None,
        None,
    ),
    (
        "RFC 7857 2.2, after it",
        &["traffic_after_a_reset_keeps_the_mapping"],
        Some("7857 §2.2"),
        None,
    ),
    ("RFC 7857 8", &["errors_do_not_keep_a_mapping"], None, None),
    ("RFC 7857 10, RFC 6056", &["a_port_that_is_not_the_insides_cannot_be_guessed"], None, None),
    (
        "RFC 7857 11, RFC 6864",
        &["pieces_of_two_containers_with_one_identification_are_not_mixed"],
        None,
        None,
    ),
    (
        "I1",
        &[
            "one_echo_identifier_for_all_hosts",
            "two_containers_with_one_identifier_get_their_own_answers",
        ],
        None,
        None,
    ),
    ("I2", &["a_question_lasts_its_time_and_no_longer"], None, None),
    ("I3", &["icmp_with_a_wrong_checksum_goes_no_further"], None, None),
    (
        "I4",
        &[
            "an_error_about_a_datagram_comes_in_as_it_is_inside",
            "an_error_about_nothing_is_dropped",
        ],
        None,
        None,
    ),
    (
        "I5",
        &[
            "the_insides_error_goes_out_as_it_is_outside",
            "a_closed_ports_error_goes_out_as_it_is_outside",
        ],
        Some("RFC 5508 REQ-4, 5"),
        None,
    ),
    ("I6", &["errors_do_not_keep_a_mapping", "errors_do_not_end_a_udp_mapping"], None, None),
    ("I7", &["an_error_between_two_inside_is_of_whom_each_knows"], Some("RFC 5508 REQ-4, 5"), None),
    ("I8", &["a_container_at_its_bound_is_told_and_keeps_what_it_has"], None, None),
    ("I9", &["a_segment_of_a_stranger_is_not_let_in"], None, None),
    (
        "I10",
        &[
            "an_error_about_an_echo_comes_in_as_it_is_inside",
            "redirects_and_source_quench_are_not_let_in",
        ],
        None,
        None,
    ),
    ("I11", &["a_question_for_the_time_passes"], Some("other ICMP queries"), None),
    (
        "RFC 6888 REQ-2",
        &["all_flows_of_a_container_have_one_external_address"],
        Some("RFC 4787 REQ-2 (pairing)"),
        None,
    ),
    (
        "RFC 6888 REQ-4, 5",
        &["a_container_at_its_bound_is_alone_in_that", "what_one_container_takes_is_not_anothers"],
        None,
        None,
    ),
    ("RFC 6888 REQ-7", &["by_choice_anybody_may_come_in"], None, None),
    ("RFC 6888 REQ-8", &["a_port_rests_before_another_has_it"], None, None),
    ("RFC 6888 REQ-11", &["a_container_at_its_bound_is_told_and_keeps_what_it_has"], None, None),
    ("RFC 6888 REQ-15", &["a_port_that_is_not_the_insides_cannot_be_guessed"], None, None),
    (
        "no early answer",
        &["a_refused_connection_is_refused_with_no_syn_ack_before", "a_silent_host_stays_silent"],
        None,
        None,
    ),
    (
        "half-close, window, urgent, reset",
        &[
            "each_side_may_end_first_and_still_be_told_more",
            "a_reader_that_stops_stops_the_writer",
            "the_urgent_octet_is_urgent_on_the_other_side",
            "a_reset_is_a_reset_on_the_other_side",
        ],
        None,
        None,
    ),
    (
        "TTL",
        &[
            "a_hop_takes_one_from_the_time_to_live",
            "a_packet_whose_time_is_over_is_told_of_and_goes_no_further",
        ],
        None,
        None,
    ),
    (
        "TTL on the way in",
        &["a_hop_takes_one_on_the_way_in", "a_hop_takes_one_towards_a_published_port"],
        Some("RFC 1122, 1812, 4443 outside"),
        None,
    ),
    ("no route, no host", &["an_unreachable_host_or_network_is_said_to_be_so"], None, None),
    (
        "no answer to what must never be answered",
        &["what_must_never_be_answered_is_not"],
        None,
        None,
    ),
    ("rate limit of errors", &["errors_are_limited_in_number"], None, None),
    (
        "martians, reverse path",
        &["a_martians_packet_goes_no_further", "a_neighbours_address_is_not_ones_own"],
        None,
        None,
    ),
    (
        "martians from outside",
        &["a_martian_from_outside_is_not_let_in"],
        Some("RFC 1122, 1812, 4443 outside"),
        None,
    ),
    (
        "options, source routes",
        &[
            "options_and_extensions_are_no_hindrance",
            "a_source_route_is_not_followed",
            "a_routing_header_is_not_followed",
        ],
        None,
        None,
    ),
    ("header checksum", &["a_wrong_header_checksum_goes_no_further"], None, None),
    (
        "no checksum, RFC 1624",
        &[
            "a_datagram_without_a_checksum_is_dropped",
            "a_datagram_without_a_checksum_passes_both_ways",
            "a_checksum_that_comes_out_as_nought_is_sent_as_its_complement",
        ],
        None,
        None,
    ),
    (
        "MSS",
        &[
            "a_syn_offers_no_more_than_the_links_mtu",
            "a_published_connection_offers_no_more_than_the_links_mtu",
        ],
        Some("1191, 8201"),
        None,
    ),
    ("redirects", &["redirects_and_source_quench_are_not_let_in"], None, None),
    (
        "scope",
        &[
            "the_hosts_loopback_is_not_reached",
            "what_is_for_everybody_stays_inside",
            "an_address_of_no_scope_beyond_the_link_stays_inside",
        ],
        None,
        None,
    ),
    (
        "RFC 826, 5227 on the segment",
        &[
            "it_answers_arp_for_its_own_address_alone",
            "a_probe_for_its_address_is_answered",
            "an_address_that_somebody_has_is_not_taken",
        ],
        Some("RFC 826, 5227, 2131, 4861, 4862"),
        None,
    ),
    (
        "RFC 4861, 4862 on the segment",
        &[
            "it_answers_neighbour_solicitations_of_neighbours_alone",
            "an_advertised_prefix_is_an_address_and_its_router_the_way_out",
        ],
        Some("RFC 826, 5227, 2131, 4861, 4862"),
        None,
    ),
    (
        "RFC 2131",
        &["a_lease_is_an_address_and_its_router_the_way_out"],
        Some("RFC 826, 5227, 2131, 4861, 4862"),
        None,
    ),
    (
        "a neighbour that does not answer",
        &["a_neighbour_that_does_not_answer_is_unreachable"],
        Some("RFC 826, 5227, 2131, 4861, 4862"),
        None,
    ),
    ("conntrack: window", &["data_outside_the_window_is_not_delivered"], None, None),
    (
        "conntrack: tcp_loose",
        &["a_connection_is_picked_up_midway"],
        Some("nf_conntrack_tcp_loose"),
        None,
    ),
    (
        "conntrack: early drop",
        &["half_open_connections_shut_nobody_out", "a_flood_of_strangers_shuts_nobody_out"],
        None,
        None,
    ),
    (
        "RFC 4340, 9260, 2784",
        &[
            "a_protocol_without_ports_passes_both_ways",
            "an_association_is_carried_by_its_ports",
            "what_no_socket_carries_is_refused_by_an_error",
        ],
        None,
        None,
    ),
    (
        "RFC 6296",
        &["a_prefix_stands_for_a_prefix_and_no_other_octet_changes"],
        Some("RFC 6296, 7915"),
        None,
    ),
    (
        "RFC 7915",
        &["an_ipv6_client_is_served_by_a_container_without_ipv6"],
        Some("RFC 6296, 7915"),
        None,
    ),
    ("RFC 4884", &["an_errors_extension_objects_come_in_unharmed"], None, None),
];

/// STANDARDS for a bridge, and the gateway's neighbours. What is not there is in README.md's "Not there yet".
const BRIDGE: &[InMemory] = &[
    (
        "ARP: own addresses alone",
        &[
            "whoever_asks_for_the_gateway_is_answered_and_known",
            "a_question_for_somebody_else_is_carried_and_not_answered",
        ],
    ),
    (
        "ARP: probes",
        &["a_probe_for_the_gateways_address_is_answered_and_the_prober_not_remembered"],
    ),
    ("ARP: gratuitous", &["an_announcement_refreshes_whom_we_know_and_introduces_nobody"]),
    ("ARP: fields", &["an_arp_message_nobody_here_can_read_is_bridged_and_teaches_nothing"]),
    ("ARP: ages", &["a_neighbour_is_reachable_then_stale_then_forgotten"]),
    (
        "ARP: three questions, queue",
        &[
            "a_packet_for_a_neighbour_who_never_answers_comes_back_as_host_unreachable",
            "the_gateway_asks_for_whom_it_does_not_know_and_then_sends_what_waited",
        ],
    ),
    ("ARP: spoofing", &["nobody_else_is_heard_claiming_an_address_the_daemon_gave_away"]),
    (
        "NDP: rules",
        &[
            "a_neighbour_message_that_breaks_a_rule_is_discarded",
            "a_solicitation_that_came_from_beyond_the_link_is_not_believed",
        ],
    ),
    (
        "NDP: DAD defended",
        &["whoever_tests_the_gateways_address_for_himself_learns_before_all_that_it_is_taken"],
    ),
    (
        "NDP: RA guard",
        &[
            "a_containers_router_advertisement_or_redirect_goes_no_further",
            "behind_extension_headers_it_is_the_same_message",
            "a_first_piece_that_hides_its_message_is_dropped_when_it_may_be_the_links",
            "an_advertisement_cut_anywhere_behind_its_first_header_is_none_that_passes",
            "a_priority_tag_hides_nothing_and_a_vlan_is_its_users_own",
            "whatever_else_a_host_says_on_the_link_is_carried",
            "routers_are_heard_where_the_gateway_is_not_ours_and_from_what_is_no_container",
        ],
    ),
    (
        "802.1D: learning",
        &[
            "a_reply_goes_only_to_the_port_that_asked",
            "a_source_that_is_no_station_is_neither_learned_nor_carried",
        ],
    ),
    (
        "802.1D: ageing, moves",
        &[
            "a_station_silent_for_five_minutes_is_unknown_again",
            "a_station_that_moves_is_followed_at_once",
        ],
    ),
    ("802.1D: table", &["a_container_that_invents_stations_crowds_out_nobody"]),
    (
        "802.1D: flooding",
        &[
            "a_frame_for_an_unknown_station_goes_everywhere_but_back",
            "a_frame_for_a_station_behind_its_own_port_is_filtered",
        ],
    ),
    ("802.1D: reserved groups", &["the_sixteen_reserved_groups_end_here_and_the_next_do_not"]),
    (
        "frames: runts, tags, MTU",
        &[
            "a_frame_shorter_than_its_header_or_longer_than_any_is_refused_at_the_door",
            "a_tagged_frame_is_carried_as_it_is",
            "a_frame_longer_than_the_egress_mtu_and_one_tag_goes_no_further",
        ],
    ),
    ("TTL of a bridged frame", &["a_bridged_packet_may_live_one_hop_as_the_bridge_is_none"]),
];

/// The test that no requirement is without a test.
pub(crate) fn each_has_its_probes() -> Result<(), Failed> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let readme = fs::read_to_string(format!("{root}README.md"))?;
    let probes = crate::all();
    let mut wrong = Vec::new();
    for (id, asked, sockets, raw) in REQUIREMENTS {
        let found = |name: &&str| probes.iter().find(|probe| probe.name == *name);
        let unknown = asked.iter().filter(|name| found(name).is_none());
        wrong.extend(unknown.map(|name| format!("{id}: there is no probe {name}")));
        for (subject, left) in [(Subject::Sockets, sockets), (Subject::Raw, raw)] {
            let is_asked = asked.iter().filter_map(found).any(|probe| probe.of.concerns(subject));
            match left {
                Some(words) if !readme.contains(words) => {
                    wrong.push(format!("{id}: README.md does not say {words:?}"));
                }
                None if !is_asked => wrong.push(format!("{id}: nobody asks {}", subject.name())),
                _ => {}
            }
        }
    }
    let mut tests = BTreeSet::new();
    for file in fs::read_dir(format!("{root}tests/story"))? {
        let text = fs::read_to_string(file?.path())?;
        let names =
            text.lines().filter_map(|line| line.trim().strip_prefix("fn ")?.split('(').next());
        tests.extend(names.map(str::to_owned));
    }
    for (id, names) in BRIDGE {
        let missing = names.iter().filter(|name| !tests.contains(**name));
        wrong.extend(missing.map(|name| format!("{id}: there is no test {name}")));
    }
    for (letter, last) in [('U', 14), ('T', 10), ('I', 11)] {
        let there = |n: u32| REQUIREMENTS.iter().any(|(id, ..)| *id == format!("{letter}{n}"));
        wrong.extend((1..=last).filter(|n| !there(*n)).map(|n| format!("{letter}{n} is not here")));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}
