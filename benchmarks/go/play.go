package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sys/unix"
)

// player does what benchmarks/players.py does, with Go's recipe of a lock.
type player struct {
	client  *clientv3.Client
	ttl     int
	each    bool // a session for each lock
	session *concurrency.Session
	mutex   *concurrency.Mutex
}

func (p *player) lock(name string) {
	var err error
	if p.session == nil {
		p.session, err = concurrency.NewSession(p.client, concurrency.WithTTL(p.ttl))
		fail(err)
	}
	p.mutex = concurrency.NewMutex(p.session, name)
	fail(p.mutex.Lock(context.Background()))
}

func (p *player) unlock() {
	fail(p.mutex.Unlock(context.Background()))
	if p.each {
		fail(p.session.Close())
		p.session = nil
	}
}

func play(client *clientv3.Client, ttl int, each bool) {
	p := player{client: client, ttl: ttl, each: each}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch words := strings.Fields(lines.Text()); words[0] {
		case "lock":
			p.lock(words[1])
			fmt.Println(monotonic())
		case "unlock":
			now := monotonic()
			p.unlock()
			fmt.Println(now)
		case "uncontended":
			count, err := strconv.Atoi(words[2])
			fail(err)
			took := make([]string, count)
			for number := range took {
				began := time.Now()
				p.lock(fmt.Sprintf("%s/%d", words[1], number))
				p.unlock()
				took[number] = fmt.Sprint(time.Since(began).Seconds())
			}
			fmt.Println(strings.Join(took, " "))
		default:
			fail(fmt.Errorf("there is no such command: %s", lines.Text()))
		}
	}
	if p.session != nil {
		p.session.Close()
	}
}

// monotonic reads the clock of Python's time.monotonic_ns; Go's own has no zero in common with it.
func monotonic() int64 {
	var now unix.Timespec
	fail(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return now.Nano()
}
