//! An HTTP server that tells every client whom it saw, and notes it as python's `http.server` does.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream};

use super::patience::{PATIENCE, failure, in_words};
use crate::failure::Outcome;
use crate::output::print;

/// Most octets of a request's head.
const MAX_HEAD: usize = 8 * 1024;

/// Serves until it is killed. One client at a time, and none for long.
pub(super) fn run(at: SocketAddrV4) -> Outcome {
    let listener =
        TcpListener::bind(at).map_err(|error| failure(format_args!("listen on {at}"), &error))?;
    print(&format!("Serving HTTP on {} port {} ...", at.ip(), at.port()))?;
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The client went away before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(failure("accept a connection", &error)),
        };
        let page = format!("Hello from {at}; you are {}, port {}\n", peer.ip(), peer.port());
        let note = match answer(stream, &page) {
            Ok(request) => format!("{} - \"{request}\" 200", peer.ip()),
            // A client that dialled and asked for nothing.
            Err(error) => format!("{} - {}", peer.ip(), in_words(&error)),
        };
        print(&note)?;
    }
}

/// Reads a request, sends the page, and gives the request's first line.
fn answer(mut stream: TcpStream, page: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut piece)?;
        if len == 0 || head.len() > MAX_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(piece.get(..len).unwrap_or_default());
    }
    let len = page.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\n\
         Connection: close\r\n\r\n{page}"
    );
    stream.write_all(answer.as_bytes())?;
    let head = String::from_utf8_lossy(&head);
    Ok(head.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_the_page_and_its_request_is_noted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let at = listener.local_addr().expect("bound");
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(at).expect("connect");
            stream.write_all(b"GET /x HTTP/1.1\r\n\r").expect("ask");
            stream.write_all(b"\n").expect("ask");
            let mut got = String::new();
            stream.read_to_string(&mut got).expect("hear");
            got
        });
        let (stream, _) = listener.accept().expect("accept");
        assert_eq!(answer(stream, "page").expect("answer"), "GET /x HTTP/1.1");
        assert!(
            client
                .join()
                .expect("client")
                .ends_with("Content-Length: 4\r\nConnection: close\r\n\r\npage")
        );
        let gone = std::thread::spawn(move || drop(TcpStream::connect(at).expect("connect")));
        let (stream, _) = listener.accept().expect("accept");
        gone.join().expect("client");
        assert!(answer(stream, "page").is_err());
    }
}
