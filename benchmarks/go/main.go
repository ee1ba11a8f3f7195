// What is measured beside aioetcd, with etcd's own client.
//
//	go scan ENDPOINT PREFIX PAGE        reads all keys of a prefix by pages; prints keys and seconds
//	go play ENDPOINT TTL session|each   locks as benchmarks/players.py does, all on one session, or each
//	                                    on one of its own
//	go work ENDPOINT                    works as benchmarks/workers.py does
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func main() {
	if arguments := map[string]int{"scan": 5, "play": 5, "work": 3}; len(os.Args) < 2 || len(os.Args) != arguments[os.Args[1]] {
		fail(fmt.Errorf("usage: scan ENDPOINT PREFIX PAGE, play ENDPOINT TTL session|each, or work ENDPOINT"))
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[2]}})
	fail(err)
	defer client.Close()
	_, err = client.Get(context.Background(), "connects")
	fail(err)
	switch os.Args[1] {
	case "scan":
		page, err := strconv.ParseInt(os.Args[4], 10, 64)
		fail(err)
		began := time.Now()
		count, err := scan(client, os.Args[3], page)
		fail(err)
		fmt.Println(count, time.Since(began).Seconds())
	case "play":
		ttl, err := strconv.Atoi(os.Args[3])
		fail(err)
		play(client, ttl, os.Args[4] == "each")
	case "work":
		fail(work(client))
	}
}

func scan(client *clientv3.Client, prefix string, page int64) (int, error) {
	key, end, revision, count := prefix, clientv3.GetPrefixRangeEnd(prefix), int64(0), 0
	for {
		options := []clientv3.OpOption{
			clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(revision),
		}
		got, err := client.Get(context.Background(), key, options...)
		if err != nil {
			return count, err
		}
		if revision == 0 {
			revision = got.Header.Revision
		}
		count += len(got.Kvs)
		if !got.More {
			return count, nil
		}
		key = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
