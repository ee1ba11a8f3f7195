// What is measured beside aioetcd, with etcd's own client.
//
//	go scan ENDPOINT PREFIX PAGE    reads all keys of a prefix by pages; prints keys and seconds
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
	if len(os.Args) != 5 || os.Args[1] != "scan" {
		fail(fmt.Errorf("usage: scan ENDPOINT PREFIX PAGE"))
	}
	page, err := strconv.ParseInt(os.Args[4], 10, 64)
	fail(err)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[2]}})
	fail(err)
	defer client.Close()
	_, err = client.Get(context.Background(), "connects")
	fail(err)
	began := time.Now()
	count, err := scan(client, os.Args[3], page)
	fail(err)
	fmt.Println(count, time.Since(began).Seconds())
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
