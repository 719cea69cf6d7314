//! The command line of the benchmark.

use anyhow::{Context, Result, bail};

pub struct Options {
    /// Parts to run; none is all.
    parts: Vec<String>,
    /// Rounds of each cell.
    pub rounds: usize,
    /// Seconds of a round; from 3 on, what the processes used is told too.
    pub seconds: u32,
    /// pgbench's scale.
    pub scale: u32,
    /// Server connections of the poolers.
    pub pool: u32,
    /// `postern.pooler_threads`.
    pub threads: u32,
    pub clients: Vec<usize>,
    pub protocols: Vec<String>,
    /// The most clients with which a direct connection is measured.
    pub direct_most: usize,
    pub idle_clients: usize,
    /// Prepared statements that both poolers keep for a server connection.
    pub statements: u32,
    pub without_postern: bool,
    /// One more round of each cell, in which perf counts system calls.
    pub syscalls: bool,
}

const USAGE: &str = "\
parts: cells tls connect sessions idle
options: --rounds=3 --seconds=3 --scale=10 --pool=20 --threads=1 --clients=1,16,200,1000
         --protocols=simple,extended,prepared --direct-most=200 --idle-clients=8000 --statements=200 --without-postern --syscalls";

impl Options {
    pub fn read(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            parts: Vec::new(),
            rounds: 3,
            seconds: 3,
            scale: 10,
            pool: 20,
            threads: 1,
            clients: vec![1, 16, 200, 1000],
            protocols: ["simple", "extended", "prepared"].map(str::to_owned).to_vec(),
            direct_most: 200,
            idle_clients: 8000,
            statements: 200,
            without_postern: false,
            syscalls: false,
        };
        for argument in arguments {
            options.take(&argument).with_context(|| format!("{argument}\n{USAGE}"))?;
        }
        Ok(options)
    }

    fn take(&mut self, argument: &str) -> Result<()> {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        match name {
            // cargo's own.
            "--bench" => {}
            "--rounds" => self.rounds = value.parse()?,
            "--seconds" => self.seconds = value.parse()?,
            "--scale" => self.scale = value.parse()?,
            "--pool" => self.pool = value.parse()?,
            "--threads" => self.threads = value.parse()?,
            "--clients" => self.clients = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--protocols" => self.protocols = value.split(',').map(str::to_owned).collect(),
            "--direct-most" => self.direct_most = value.parse()?,
            "--statements" => self.statements = value.parse()?,
            "--idle-clients" => self.idle_clients = value.parse()?,
            "--without-postern" => self.without_postern = true,
            "--syscalls" => self.syscalls = true,
            option if option.starts_with("--") => bail!("no such option"),
            // Perhaps a part of another benchmark: cargo gives every one of them all words.
            part => self.parts.push(part.to_owned()),
        }
        Ok(())
    }

    pub fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}
