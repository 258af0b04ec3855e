//! The demo's workload: a small HTTP service that is warm once it has been told a token, and then
//! sleeps in accept. It has state in its memory and on its disk, for a fork to inherit, and draws
//! random bytes as the first thing it does for every connection, for a fork not to inherit.
//!
//! `GET /ping`, `GET /state`, `POST /token` (the body is the token).

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

const PORT: u16 = 8080;
const TOKEN_FILE: &str = "/var/lib/warm/token";
const BODY_BYTES_MAX: usize = 4096;

struct Service {
    token: String,
    answer_count: u64,
}

fn main() -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    let mut service = Service { token: String::new(), answer_count: 0 };
    println!("warm service listens on {PORT}");
    loop {
        let (stream, _) = listener.accept()?;
        let random = draw_random()?;
        // A client that goes away in the middle is its own business.
        if let Err(error) = service.answer(stream, &random) {
            eprintln!("a request failed: {error}");
        }
    }
}

impl Service {
    fn answer(&mut self, mut stream: TcpStream, random: &str) -> io::Result<()> {
        self.answer_count += 1;
        let (request, body) = read_request(&stream)?;
        let content = match request.as_str() {
            "GET /ping" => "pong".to_string(),
            "GET /state" => self.state(&stream, random)?,
            "POST /token" => {
                self.token = body;
                fs::create_dir_all("/var/lib/warm")?;
                fs::write(TOKEN_FILE, &self.token)?;
                "{}".to_string()
            }
            _ => return stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n"),
        };
        let length = content.len();
        stream.write_all(format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{content}").as_bytes())
    }

    fn state(&self, stream: &TcpStream, random: &str) -> io::Result<String> {
        Ok(format!(
            r#"{{"memory":"{}","disk":"{}","hostname":"{}","machine_id":"{}","ip":"{}","mac":"{}","random":"{random}","answers":{}}}"#,
            self.token,
            fs::read_to_string(TOKEN_FILE).unwrap_or_default(),
            read_line("/proc/sys/kernel/hostname")?,
            read_line("/etc/machine-id")?,
            stream.local_addr()?.ip(),
            read_line("/sys/class/net/eth0/address")?,
            self.answer_count,
        ))
    }
}

fn read_request(stream: &TcpStream) -> io::Result<(String, String)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let request = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; std::cmp::min(length, BODY_BYTES_MAX)];
    reader.read_exact(&mut body)?;
    Ok((request, String::from_utf8_lossy(&body).into_owned()))
}

/// 16 bytes of the kernel's generator, in hex: a UUID is made of them (random(4)).
fn draw_random() -> io::Result<String> {
    read_line("/proc/sys/kernel/random/uuid")
}

fn read_line(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_string())
}
