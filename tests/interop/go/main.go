// A player with Go's recipes in a lock or an election, told what to do line by line.
//
// Each line on stdin is a command, answered by one line on stdout: "error", or the command's first
// word, and what else it gives. Commands are carried out one after the other. NANOSECONDS are of the
// monotonic clock that all processes of a machine share.
//
//	lock NAME              locked KEY TOKEN NANOSECONDS     waits until it has the lock
//	trylock NAME           trylock true|false               does not wait
//	guarded KEY VALUE      guarded true|false REVISION      puts, if it still owns the lock
//	unlock                 unlock NANOSECONDS               before it releases the lock
//	campaign NAME VALUE    campaign KEY TOKEN NANOSECONDS   waits until it leads
//	proclaim VALUE         proclaim REVISION
//	resign                 resign NANOSECONDS               before it resigns
//	leader NAME            leader KEY TOKEN VALUE           "leader" alone where nobody leads
//	observe NAME           observe                          from then on, beside the answers:
//	                       observed KEY REVISION VALUE
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sys/unix"
)

var out sync.Mutex

func say(words ...any) {
	out.Lock()
	defer out.Unlock()
	fmt.Println(words...)
}

func main() {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{os.Args[1]},
		DialTimeout: 10 * time.Second,
	})
	exitOn(err)
	defer client.Close()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(60))
	exitOn(err)
	defer session.Close()
	player := player{client: client, session: session}
	say("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if answer, err := player.do(words); err != nil {
			say("error", err)
		} else {
			say(append([]any{words[0]}, answer...)...)
		}
	}
}

type player struct {
	client   *clientv3.Client
	session  *concurrency.Session
	mutex    *concurrency.Mutex
	election *concurrency.Election
}

func (p *player) do(words []string) ([]any, error) {
	ctx := context.Background()
	switch words[0] {
	case "lock":
		p.mutex = concurrency.NewMutex(p.session, words[1])
		if err := p.mutex.Lock(ctx); err != nil {
			return nil, err
		}
		return p.held(ctx, p.mutex.Key())
	case "trylock":
		mutex := concurrency.NewMutex(p.session, words[1])
		err := mutex.TryLock(ctx)
		if errors.Is(err, concurrency.ErrLocked) {
			return []any{false}, nil
		}
		if err == nil {
			p.mutex = mutex
		}
		return []any{true}, err
	case "guarded":
		put := clientv3.OpPut(words[1], words[2])
		done, err := p.client.Txn(ctx).If(p.mutex.IsOwner()).Then(put).Commit()
		if err != nil {
			return nil, err
		}
		return []any{done.Succeeded, done.Header.Revision}, nil
	case "unlock":
		now := monotonic()
		return []any{now}, p.mutex.Unlock(ctx)
	case "campaign":
		p.election = concurrency.NewElection(p.session, words[1])
		if err := p.election.Campaign(ctx, words[2]); err != nil {
			return nil, err
		}
		return p.held(ctx, p.election.Key())
	case "proclaim":
		err := p.election.Proclaim(ctx, words[1])
		if err != nil {
			return nil, err
		}
		return []any{p.election.Header().Revision}, nil
	case "resign":
		now := monotonic()
		return []any{now}, p.election.Resign(ctx)
	case "leader":
		got, err := concurrency.NewElection(p.session, words[1]).Leader(ctx)
		if errors.Is(err, concurrency.ErrElectionNoLeader) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		kv := got.Kvs[0]
		return []any{string(kv.Key), kv.CreateRevision, string(kv.Value)}, nil
	case "observe":
		leaders := concurrency.NewElection(p.session, words[1]).Observe(ctx)
		go func() {
			for got := range leaders {
				kv := got.Kvs[0]
				say("observed", string(kv.Key), kv.ModRevision, string(kv.Value))
			}
		}()
		return nil, nil
	}
	return nil, fmt.Errorf("there is no command %q", words[0])
}

// held tells what it has: the key, and since when. Go's recipes do not tell a lock's token.
func (p *player) held(ctx context.Context, key string) ([]any, error) {
	now := monotonic()
	got, err := p.client.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	if len(got.Kvs) != 1 {
		return nil, fmt.Errorf("has %s, which is not there", key)
	}
	return []any{key, got.Kvs[0].CreateRevision, now}, nil
}

// monotonic reads the clock that Python's time.monotonic_ns reads; Go's own has no common zero.
func monotonic() int64 {
	var now unix.Timespec
	exitOn(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return now.Nano()
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
