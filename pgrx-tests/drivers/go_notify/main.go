// go_notify HOST PORT: pgx's WaitForNotification and lib/pq's Listener hear what is notified, with the notifier's pid.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/lib/pq"
)

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func expect(what string, right bool) {
	if !right {
		fmt.Println("wrong:", what)
		os.Exit(1)
	}
}

func main() {
	within, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	address := fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres sslmode=disable", os.Args[1], os.Args[2])
	listener, err := pgx.Connect(within, address)
	check(err)
	notifier, err := pgx.Connect(within, address)
	check(err)
	_, err = listener.Exec(within, "LISTEN news")
	check(err)
	events := make(chan pq.ListenerEventType, 8)
	other := pq.NewListener(address, time.Second, time.Second, func(event pq.ListenerEventType, err error) {
		check(err)
		events <- event
	})
	check(other.Listen("news"))
	expect("lib/pq is connected", <-events == pq.ListenerEventConnected)
	for number := 0; number < 3; number++ {
		_, err = notifier.Exec(within, "SELECT pg_notify('news', $1)", fmt.Sprint(number))
		check(err)
		heard, err := listener.WaitForNotification(within)
		check(err)
		expect("pgx's payload", heard.Payload == fmt.Sprint(number) && heard.Channel == "news")
		expect("pgx's pid", heard.PID == notifier.PgConn().PID())
		again := <-other.Notify
		expect("lib/pq's payload", again.Extra == fmt.Sprint(number) && again.Channel == "news")
		expect("lib/pq's pid", again.BePid == int(notifier.PgConn().PID()))
	}
	check(other.Ping())
	check(other.Unlisten("news"))
	check(other.Close())
	_, err = listener.Exec(within, "NOTIFY news, 'own'")
	check(err)
	own, err := listener.WaitForNotification(within)
	check(err)
	expect("pgx's own", own.Payload == "own" && own.PID == listener.PgConn().PID())
	check(listener.Close(within))
	check(notifier.Close(within))
}
