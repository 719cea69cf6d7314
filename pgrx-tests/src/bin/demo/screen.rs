//! What the demo shows: steps with the time that they take, and answers.

use anyhow::Result;
use std::io::Write;
use std::time::Instant;

pub fn title() {
    println!(
        "Postern: status answers, a pooler, a notification relay and change streams from inside PostgreSQL\n\
         This builds the extension, starts a primary (node1) and a standby (node2) in a private copy of the server with\n\
         haproxy in front, moves a client's writes from one to the other and back, and cleans up after itself."
    );
    heading("Setting up");
}

pub fn heading(text: &str) {
    println!("\n{text}");
}

/// Does something and says how long it took; on a failure the error goes on.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("  {what} ... ");
    let _ = std::io::stdout().flush();
    let started = Instant::now();
    let done = work();
    match &done {
        Ok(_) => println!("{:.1} s", started.elapsed().as_secs_f64()),
        Err(_) => println!("failed"),
    }
    done
}

/// A remark within a step.
pub fn note(text: &str) {
    print!("{text} ... ");
    let _ = std::io::stdout().flush();
}

/// A question and its answer on one line.
pub fn show(question: &str, answer: &str) {
    println!("  {question:<46} {answer}");
}
