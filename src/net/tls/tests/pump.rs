//! Bytes between a TLS client and the server, both ways, to each end.

use super::*;

/// A client, the server's end of the socket pair, and the pump between them.
async fn pumping(
    patience: Duration,
) -> (ClientStream, UnixStream, tokio::task::JoinHandle<std::io::Result<Pumped>>) {
    let scene = Scene::new();
    let identity = Identity::load(&scene.files).unwrap();
    let (tls, client) = scene.client().meet(&identity).await.unwrap();
    let (plain, server) = UnixStream::pair().unwrap();
    (client, server, tokio::spawn(pump(tls, plain, patience, ())))
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn bytes_go_both_ways_at_once_and_each_end_is_passed_on() {
    let (client, server, pump) = pumping(PATIENCE).await;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.into_split();
    let upwards = tokio::spawn(async move {
        to_client.write_all(&bytes(LONG)).await.unwrap();
        to_client.shutdown().await.unwrap();
    });
    let server = tokio::spawn(async move {
        let answer = tokio::spawn(async move {
            to_server.write_all(&bytes(LONG + 1)).await.unwrap();
            to_server
        });
        let mut heard = Vec::new();
        from_server.read_to_end(&mut heard).await.unwrap();
        assert!(heard == bytes(LONG));
        // The client has ended its side; an answer still goes to it.
        answer.await.unwrap().write_all(b"bye").await.unwrap();
    });
    let mut heard = Vec::new();
    from_client.read_to_end(&mut heard).await.unwrap();
    assert!(heard.strip_suffix(b"bye").unwrap() == bytes(LONG + 1));
    upwards.await.unwrap();
    server.await.unwrap();
    let pumped = pump.await.unwrap().unwrap();
    assert_eq!(pumped, Pumped { from_client: LONG as u64, to_client: LONG as u64 + 4 });
}

#[tokio::test]
async fn small_messages_are_not_held_back() {
    let (mut client, mut server, pump) = pumping(PATIENCE).await;
    let mut heard = [0; 4];
    for _ in 0..100 {
        client.write_all(b"ping").await.unwrap();
        client.flush().await.unwrap();
        server.read_exact(&mut heard).await.unwrap();
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut heard).await.unwrap();
    }
    drop(server);
    assert_eq!(client.read(&mut heard).await.unwrap(), 0, "close_notify");
    drop(client);
    pump.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_servers_last_words_arrive_although_it_has_not_read_the_clients() {
    let (mut client, mut server, pump) = pumping(PATIENCE).await;
    client.write_all(b"a query that nobody reads").await.unwrap();
    server.readable().await.unwrap();
    server.write_all(b"FATAL").await.unwrap();
    drop(server);
    for _ in 0..10 {
        client.write_all(&[0; 1000]).await.unwrap();
    }
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"FATAL");
    client.shutdown().await.unwrap();
    drop(client);
    assert_eq!(pump.await.unwrap().unwrap().to_client, 5);
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_of_a_server_that_is_gone_is_left_in_time() {
    let (mut client, server, pump) = pumping(PATIENCE).await;
    let before = tokio::time::Instant::now();
    drop(server);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    pump.await.unwrap().unwrap();
    assert!(before.elapsed() >= PATIENCE && before.elapsed() < PATIENCE * 2);
    drop(client);
}

#[tokio::test]
async fn a_client_that_vanishes_ends_the_server_side() {
    let (client, mut server, pump) = pumping(PATIENCE).await;
    drop(client);
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
    drop(server);
    pump.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_tls_closes_both_sides() {
    let (client, mut server, pump) = pumping(PATIENCE).await;
    let (mut raw, _tls) = client.into_inner();
    raw.write_all(b"\x17\x03\x03\x00\x20................................").await.unwrap();
    assert_eq!(pump.await.unwrap().unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_server_back() {
    let (mut client, mut server, pump) = pumping(PATIENCE).await;
    let mut sent = 0;
    while let Ok(Ok(written)) =
        tokio::time::timeout(Duration::from_millis(200), server.write(&[7; 10_000])).await
    {
        sent += written;
        assert!(sent < 4_000_000, "nobody holds it back");
    }
    drop(server);
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard.len(), sent);
    drop(client);
    assert_eq!(pump.await.unwrap().unwrap().to_client, sent as u64);
}
