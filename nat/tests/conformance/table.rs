//! Every requirement on a NAT and where it is held: by these tests, or by whom else, and why not here.
//!
//! UDP (RFC 4787 REQ-1 to 14), TCP (RFC 5382 REQ-1 to 10), RFC 7857 section by section, ICMP (RFC 5508 REQ-1 to 11),
//! carrier-grade NAT where it helps (RFC 6888), what a router does to packets (RFC 1812, RFC 4443), and the timers.

use std::collections::BTreeSet;

const SOURCES: &[&str] = &[
    include_str!("family.rs"),
    include_str!("hairpin.rs"),
    include_str!("icmp.rs"),
    include_str!("identity.rs"),
    include_str!("limits.rs"),
    include_str!("listings.rs"),
    include_str!("offload.rs"),
    include_str!("pieces.rs"),
    include_str!("properties.rs"),
    include_str!("protocols.rs"),
    include_str!("rfc7857.rs"),
    include_str!("rules.rs"),
    include_str!("tcp.rs"),
    include_str!("udp.rs"),
    include_str!("uplinks.rs"),
    include_str!("../segments.rs"),
];

/// Where a requirement is held.
enum Held {
    /// By these tests.
    By(&'static [&'static str]),
    /// Not by this crate: by whom, and why.
    Elsewhere(&'static str),
}
use Held::{By, Elsewhere};

const REQUIREMENTS: &[(&str, Held)] = &[
    (
        "RFC 4787 REQ-1 endpoint-independent mapping",
        By(&["u1_a_mapping_is_endpoint_independent", "u1_a_flow_that_begins_twice_at_once_is_one"]),
    ),
    ("RFC 4787 REQ-2 paired pooling", By(&["u2_pooling_is_paired"])),
    (
        "RFC 4787 REQ-3 no overloading",
        By(&[
            "u3_no_port_is_overloaded",
            "u3_exhaustion_is_told_and_nobody_loses_a_port",
            "whatever_happens_names_are_unique_and_ports_come_back",
        ]),
    ),
    ("RFC 4787 REQ-3a range", By(&["u3a_the_range_of_a_port_is_kept"])),
    ("RFC 4787 REQ-4 parity", By(&["u4_parity_is_kept"])),
    ("port preservation", By(&["u4b_a_port_is_preserved_while_it_is_free"])),
    ("RFC 4787 REQ-5 timer", By(&["u5_a_mapping_lives_two_minutes_unanswered_and_five_answered"])),
    (
        "RFC 4787 REQ-5a well-known ports",
        By(&["u5a_a_question_to_a_name_server_is_forgotten_once_answered"]),
    ),
    (
        "RFC 4787 REQ-5b configurable",
        By(&["u5b_times_are_configurable", "each_uplink_has_its_own_times"]),
    ),
    (
        "RFC 4787 REQ-6 refresh",
        By(&[
            "u6_what_goes_out_keeps_the_mapping_alive",
            "u6_what_comes_from_outside_keeps_nothing_alive",
            "u6_a_flow_between_containers_holds_both_mappings",
        ]),
    ),
    (
        "RFC 4787 REQ-7 the same prefix on both sides",
        By(&["u7_the_same_addresses_inside_and_outside_are_told_apart"]),
    ),
    (
        "RFC 4787 REQ-7 another subnet is picked",
        Elsewhere("the daemon's choice of subnets: a NAT has none"),
    ),
    (
        "RFC 4787 REQ-8 filtering",
        By(&[
            "u8_filtering_is_address_dependent_by_default",
            "u8_filtering_may_be_endpoint_independent",
            "u8_filtering_may_depend_on_the_port_too",
            "u8_an_address_spoken_to_no_more_is_a_stranger_again",
            "u8_filtering_between_containers_depends_on_the_port_where_it_shall",
        ]),
    ),
    (
        "RFC 4787 REQ-9 hairpinning",
        By(&[
            "u9_hairpin_shows_the_external_source",
            "u9_hairpin_to_a_published_port",
            "u8_u9_both_reach_each_other_once_both_have_spoken",
            "each_uplink_has_its_own_hairpin",
        ]),
    ),
    ("RFC 4787 REQ-10 no ALG", By(&["u10_payload_is_never_touched"])),
    ("RFC 4787 REQ-11 deterministic", By(&["u11_behaviour_does_not_change_under_load"])),
    (
        "RFC 4787 REQ-12 ICMP ends no mapping",
        By(&["i6_u12_t10_an_error_neither_keeps_nor_ends_a_flow"]),
    ),
    (
        "RFC 4787 REQ-13 too long",
        By(&[
            "u13_too_long_to_be_sent_is_told_or_cut",
            "u13_a_packet_too_big_from_the_way_reaches_the_container",
            "u13_a_partial_checksum_is_finished_before_the_packet_is_cut",
        ]),
    ),
    (
        "RFC 4787 REQ-14 pieces",
        By(&[
            "u14_pieces_are_translated_in_any_order",
            "u14_a_piece_that_comes_twice_is_one",
            "u14_orphans_cost_their_sender_only",
            "u14_pieces_wait_for_half_a_minute",
            "r5722_pieces_that_overlap_condemn_their_packet",
        ]),
    ),
    (
        "RFC 768 no checksum",
        By(&["u16_no_checksum_stays_no_checksum", "nat46_a_checksum_that_was_not_made_is_made"]),
    ),
    ("RFC 5382 REQ-1 endpoint-independent mapping", By(&["t1_a_mapping_is_endpoint_independent"])),
    (
        "RFC 5382 REQ-2 every valid sequence",
        By(&[
            "t2_every_valid_sequence_passes",
            "t2_both_sides_may_open_at_once",
            "t2_t8_both_open_at_once",
            "no_honest_segment_is_invalid",
        ]),
    ),
    ("RFC 5382 REQ-3 filtering", By(&["t3_filtering_is_address_dependent"])),
    (
        "RFC 5382 REQ-4 unsolicited SYN",
        By(&[
            "t4_a_syn_nobody_asked_for_is_answered_after_six_seconds",
            "t4_nothing_is_said_if_the_inside_opens_meanwhile",
            "t4a_policy_may_say_nothing_at_all",
            "t4_a_syn_nobody_answers_is_told_of_between_containers_too",
        ]),
    ),
    (
        "RFC 5382 REQ-5 idle times",
        By(&[
            "t5_an_established_connection_may_be_silent_for_two_hours_and_four_minutes",
            "t5_one_that_is_opening_or_closing_for_four_minutes",
            "t5_the_linux_profile_keeps_linux_times",
        ]),
    ),
    ("RFC 5382 REQ-6 no ALG", By(&["u10_payload_is_never_touched"])),
    ("RFC 5382 REQ-7 no overloading", By(&["t7_no_port_is_overloaded"])),
    (
        "RFC 5382 REQ-8 hairpinning",
        By(&["t8_hairpin_to_a_published_port", "t2_t8_both_open_at_once"]),
    ),
    (
        "RFC 5382 REQ-9 ICMP type 3",
        By(&["i4_an_error_from_outside_reaches_who_is_concerned_with_what_he_sent"]),
    ),
    (
        "RFC 5382 REQ-10 ICMP ends no connection",
        By(&["i6_u12_t10_an_error_neither_keeps_nor_ends_a_flow"]),
    ),
    (
        "RFC 7857 §2.1 states",
        By(&["t2_every_valid_sequence_passes", "t12_a_refused_connection_is_refused"]),
    ),
    (
        "RFC 7857 §2.2 RST",
        By(&[
            "r7857_2_2_a_reset_is_translated_and_the_entry_stays",
            "r5961_a_guessed_reset_changes_nothing",
        ]),
    ),
    ("RFC 7857 §3 overlapping", By(&["u3_no_port_is_overloaded"])),
    ("RFC 7857 §4 paired pooling", By(&["u2_pooling_is_paired"])),
    ("RFC 7857 §5 mappings of a protocol", By(&["r7857_5_protocols_have_mappings_of_their_own"])),
    (
        "RFC 7857 §6 filtering",
        By(&["u8_filtering_may_be_endpoint_independent", "t3_filtering_is_address_dependent"]),
    ),
    ("RFC 7857 §7 inbound refresh", By(&["u6_what_comes_from_outside_keeps_nothing_alive"])),
    (
        "RFC 7857 §8 errors and resets",
        By(&["r7857_8_errors_and_resets_from_inside_keep_nothing_alive"]),
    ),
    ("RFC 7857 §9 parity", By(&["u4_parity_is_kept"])),
    (
        "RFC 7857 §10, RFC 6056 randomisation",
        By(&["u15_a_port_that_is_not_preserved_cannot_be_guessed"]),
    ),
    (
        "RFC 7857 §11, RFC 6864 identification",
        By(&["r7857_11_identifications_are_told_apart_behind_one_address"]),
    ),
    ("RFC 7857 §12 query mappings", By(&["r7857_12_a_query_s_mapping_goes_with_its_last_session"])),
    ("RFC 7857 §13 hairpinned queries", By(&["r7857_13_i7_queries_are_hairpinned"])),
    (
        "RFC 5508 REQ-1 queries",
        By(&[
            "i1_queries_pass_and_their_identifier_is_endpoint_independent",
            "i1_two_containers_with_one_identifier_are_told_apart",
        ]),
    ),
    ("RFC 5508 REQ-2 query timer", By(&["i2_a_query_is_remembered_for_a_minute"])),
    (
        "RFC 5508 REQ-3 checksums, options, extensions",
        By(&[
            "i3_bad_checksums_are_dropped",
            "i3_quoted_options_are_skipped",
            "i3_extensions_are_kept",
        ]),
    ),
    (
        "RFC 5508 REQ-4 errors from outside",
        By(&[
            "i4_an_error_from_outside_reaches_who_is_concerned_with_what_he_sent",
            "i4_eight_octets_of_a_segment_are_enough",
            "i4_quoted_extension_headers_are_looked_through",
        ]),
    ),
    (
        "RFC 5508 REQ-5 errors from inside",
        By(&["i5_an_error_from_inside_shows_the_external_address"]),
    ),
    ("RFC 5508 REQ-6 no refresh", By(&["i6_u12_t10_an_error_neither_keeps_nor_ends_a_flow"])),
    (
        "RFC 5508 REQ-7 hairpinned errors",
        By(&[
            "i7_hairpinned_errors_and_queries",
            "i7_an_error_between_containers_by_their_mappings",
        ]),
    ),
    (
        "RFC 5508 REQ-8 no resources",
        By(&[
            "i8_without_resources_the_sender_is_told",
            "u3_exhaustion_is_told_and_nobody_loses_a_port",
        ]),
    ),
    (
        "RFC 5508 REQ-9 policy",
        By(&[
            "i9_an_error_about_what_was_refused_does_not_pass",
            "t4a_policy_may_say_nothing_at_all",
        ]),
    ),
    (
        "RFC 5508 REQ-10 messages to be supported",
        By(&[
            "i4_an_error_from_outside_reaches_who_is_concerned_with_what_he_sent",
            "i10_source_quench_is_not_translated",
        ]),
    ),
    ("RFC 5508 REQ-11 other messages", By(&["i10_source_quench_is_not_translated"])),
    ("RFC 6888 REQ-2 pairing", By(&["u2_pooling_is_paired"])),
    (
        "RFC 6888 REQ-4 limits of a container",
        By(&[
            "r6888_4_ports_are_limited_for_each_container",
            "r6888_4_flows_are_limited_for_each_container",
            "a_quota_may_change",
        ]),
    ),
    (
        "RFC 6888 REQ-5 memory of a container",
        By(&["r6888_4_flows_are_limited_for_each_container", "u14_orphans_cost_their_sender_only"]),
    ),
    ("RFC 6888 REQ-7 filtering", By(&["u8_filtering_may_be_endpoint_independent"])),
    (
        "RFC 6888 REQ-8 ports rest",
        By(&[
            "r8_a_port_rests_before_another_container_has_it",
            "r8_a_port_rests_for_two_minutes_from_its_end_on",
        ]),
    ),
    (
        "RFC 6888 REQ-11 nothing of another's is deleted",
        By(&["a_scan_makes_room_for_itself", "u3_exhaustion_is_told_and_nobody_loses_a_port"]),
    ),
    (
        "RFC 6888 REQ-12 to 14 logs",
        Elsewhere("nothing is logged for a flow; traces are the daemon's, and asked for"),
    ),
    (
        "RFC 6888 REQ-15 unguessable ports",
        By(&["u15_a_port_that_is_not_preserved_cannot_be_guessed"]),
    ),
    (
        "RFC 1812 TTL, no route, unreachable hosts, redirects, rate limits",
        Elsewhere("the data path's gateway, between the hooks: it makes ICMP errors, a NAT none"),
    ),
    (
        "RFC 1812 header checksum, martians, source routes",
        Elsewhere("the data path's gateway, before the hooks"),
    ),
    (
        "RFC 8200 §8.1 no checksum in IPv6",
        By(&["u16_a_datagram_without_a_checksum_is_none_in_ipv6"]),
    ),
    (
        "RFC 792 reassembly time exceeded",
        Elsewhere("not sent (RFC 4787 REQ-14 asks for none): pieces go in silence"),
    ),
    (
        "RFC 1624 updates",
        By(&["translation_undone_is_the_identity", "with_work_left_undone_it_is_the_same_work"]),
    ),
    (
        "virtio partial checksums and segmentation",
        By(&[
            "a_frame_of_64_kb_is_one_packet_of_the_flow",
            "datagrams_still_to_be_segmented_keep_their_partial_checksum",
            "a_segment_counts_with_all_its_headers",
            "nat46_translates_offloaded_packets",
        ]),
    ),
    (
        "RFC 6691 MSS",
        By(&[
            "t14_mss_is_lowered_to_what_the_way_carries",
            "t14_the_mss_of_an_offloaded_syn_is_lowered",
            "nat46_the_mss_counts_the_headers_of_both_versions",
        ]),
    ),
    (
        "RFC 8201 path MTU",
        By(&[
            "u13_a_packet_too_big_from_the_way_reaches_the_container",
            "nat46_too_long_is_told_with_the_difference_of_the_headers",
        ]),
    ),
    (
        "RFC 5961 window",
        By(&[
            "t11_a_segment_out_of_its_window_is_invalid_and_why_is_told_in_numbers",
            "t11_a_liberal_nat_lets_it_pass",
            "no_honest_segment_is_invalid",
        ]),
    ),
    ("tcp_loose", By(&["t13_a_connection_is_picked_up_in_the_middle_unless_strict"])),
    (
        "tcp_max_retrans, tcp_unacknowledged",
        By(&[
            "t5_data_that_is_not_acknowledged_ends_sooner",
            "t5_a_connection_that_gets_nowhere_ends_sooner",
        ]),
    ),
    (
        "RFC 9260 SCTP",
        By(&[
            "sctp_is_followed_from_init_to_shutdown_complete",
            "sctp_is_remembered_for_as_long_as_its_state_says",
            "sctp_with_another_s_tag_is_refused",
            "sctp_s_other_paths_are_tried_by_heartbeats",
            "sctp_keeps_its_ports_where_they_are_free",
        ]),
    ),
    ("RFC 5597 DCCP", By(&["dccp_has_ports_and_two_idle_times"])),
    ("RFC 3828 UDP-Lite", By(&["udp_lite_is_translated_as_udp_is"])),
    (
        "GRE, ESP, AH and the rest by address",
        By(&[
            "protocols_without_ports_are_translated_by_address",
            "gre_lives_two_minutes_unanswered_and_five_answered_and_what_nobody_knows_ten",
        ]),
    ),
    (
        "early drop, never of the assured",
        By(&["a_scan_makes_room_for_itself", "who_asks_in_anothers_name_shuts_nobody_out"]),
    ),
    (
        "RFC 6296 NPTv6",
        By(&[
            "r6296_every_inside_address_has_its_own_outside_without_state",
            "r6296_quoted_packets_are_translated_too",
            "r6296_hairpin",
            "r6296_a_host_with_a_prefix_may_be_published_too",
            "r6296_a_rule_goes_before_a_prefix",
        ]),
    ),
    (
        "RFC 7915 NAT46",
        By(&[
            "nat46_an_ipv6_client_reaches_an_ipv4_container",
            "nat46_errors_are_told_in_the_sender_s_own_version",
            "nat46_needs_addresses_to_show",
        ]),
    ),
    (
        "masquerade: an address that is lost, a route that changes",
        By(&[
            "an_address_that_is_lost_takes_its_flows_along",
            "an_address_that_is_lost_takes_flows_without_ports_along",
            "a_flow_whose_route_changes_begins_anew",
        ]),
    ),
];

#[test]
fn every_requirement_is_held_by_a_test_or_by_somebody_else() {
    let tests: BTreeSet<&str> = SOURCES
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.trim().strip_prefix("fn ")?.split('(').next())
        .collect();
    let mut named = BTreeSet::new();
    for (requirement, held) in REQUIREMENTS {
        assert!(named.insert(requirement), "{requirement} stands there twice");
        match held {
            By(by) => {
                assert!(!by.is_empty(), "{requirement}");
                by.iter().for_each(|test| assert!(tests.contains(test), "{requirement}: {test}"));
            }
            Elsewhere(why) => assert!(!why.is_empty(), "{requirement}"),
        }
    }
    for (rfc, last) in [("RFC 4787 REQ-", 14), ("RFC 5382 REQ-", 10), ("RFC 5508 REQ-", 11)] {
        let numbers = named.iter().filter_map(|name| name.strip_prefix(rfc)?.split(' ').next());
        let held: BTreeSet<u32> = numbers.filter_map(|number| number.parse().ok()).collect();
        assert_eq!(held, (1..=last).collect(), "{rfc}");
    }
}
