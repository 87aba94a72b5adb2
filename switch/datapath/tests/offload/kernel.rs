//! Frames the kernel itself cut and completed, against ours, octet for octet.

use datapath::offload::{OFFLOAD_HEADER_LEN, Offload};
use datapath::segment::segment;

/// Per case a name (=), the offload header and frame given (>), and what came out (<).
const RECORDED: &str = include_str!("kernel.txt");

#[test]
#[cfg_attr(target_endian = "big", ignore = "the headers were recorded on a little-endian host")]
fn the_kernel_cuts_as_we_do() {
    let mut cases = 0;
    for case in RECORDED.split("\n= ").skip(1) {
        let (name, lines) = case.split_once('\n').expect("a name");
        let mut given = Vec::new();
        let mut expected = Vec::new();
        for line in lines.lines().filter(|line| !line.is_empty()) {
            match line.split_once(' ') {
                Some((">", octets)) => given = octets.split(' ').map(from_hex).collect(),
                Some(("<", octets)) => expected.push(from_hex(octets)),
                _ => panic!("{name}: what is {line:?}?"),
            }
        }
        let [header, frame] = &given[..] else { panic!("{name}: a header and a frame") };
        let header = <&[u8; OFFLOAD_HEADER_LEN]>::try_from(&header[..]).expect("ten octets");
        let offload = Offload::parse(header).expect(name);
        let mut made = Vec::new();
        let mut scratch = Vec::new();
        let count = segment(frame, offload, &mut scratch, &mut |piece| made.push(piece.to_vec()));
        assert_eq!(count, Ok(expected.len()), "{name}");
        assert_eq!(made, expected, "{name}");
        cases += 1;
    }
    assert_eq!(cases, 15);
}

fn from_hex(digits: &str) -> Vec<u8> {
    let digit = |place: usize| u8::from_str_radix(&digits[place..place + 2], 16).expect("hex");
    (0..digits.len()).step_by(2).map(digit).collect()
}
