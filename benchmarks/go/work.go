package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What came of a task, as benchmarks/versus.py wants it. Times are in seconds.
type outcome struct {
	Calls   int     `json:"calls"`
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
}

const keys = 1000

func keyOf(number int) string { return fmt.Sprintf("/k/%08d", number) }

// Does what each line of the standard input says, and prints a line for it.
func work(client *clientv3.Client) error {
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		numbers := make([]int, len(words)-1)
		for i, word := range words[1:] {
			number, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			numbers[i] = number
		}
		before := cpu()
		began := time.Now()
		done, err := do(client, words[0], numbers)
		if err != nil {
			return err
		}
		done.Seconds = time.Since(began).Seconds()
		done.CPU = cpu() - before
		line, err := json.Marshal(done)
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return lines.Err()
}

func do(client *clientv3.Client, what string, numbers []int) (outcome, error) {
	value := strings.Repeat("v", 64)
	ctx := context.Background()
	switch what {
	case "get":
		return many(numbers, func(number int) error {
			_, err := client.Get(ctx, keyOf(number%keys))
			return err
		})
	case "put":
		return many(numbers, func(number int) error {
			_, err := client.Put(ctx, keyOf(number%keys), value)
			return err
		})
	case "scan":
		count, err := scan(client, "/s/", int64(1000))
		return outcome{Calls: count}, err
	case "replay":
		return replay(client, 1, int64(numbers[0]), numbers[1])
	case "fanout":
		return replay(client, numbers[0], 0, numbers[1])
	case "many":
		return putMany(client, numbers[0])
	}
	return outcome{}, fmt.Errorf("what is %q?", what)
}

// Writes so many keys by txns of 128, eight of them at a time, as KV.put_many does.
func putMany(client *clientv3.Client, count int) (outcome, error) {
	firsts := make(chan int)
	failed := make(chan error, 8)
	var all sync.WaitGroup
	for writer := 0; writer < 8; writer++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for first := range firsts {
				var puts []clientv3.Op
				for number := first; number < first+128 && number < count; number++ {
					puts = append(puts, clientv3.OpPut(fmt.Sprintf("/m/%08d", number), strings.Repeat("v", 64)))
				}
				if _, err := client.Txn(context.Background()).Then(puts...).Commit(); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	for first := 0; first < count; first += 128 {
		firsts <- first
	}
	close(firsts)
	all.Wait()
	select {
	case err := <-failed:
		return outcome{}, err
	default:
		return outcome{Calls: count}, nil
	}
}

// Lets so many callers call for so many milliseconds.
func many(numbers []int, call func(int) error) (outcome, error) {
	callers, stop := numbers[0], time.Now().Add(time.Duration(numbers[1])*time.Millisecond)
	took := make([][]time.Duration, callers)
	failed := make([]error, callers)
	var all sync.WaitGroup
	for caller := 0; caller < callers; caller++ {
		all.Add(1)
		go func(caller int) {
			defer all.Done()
			for number := caller; ; number += callers {
				began := time.Now()
				if began.After(stop) {
					return
				}
				if err := call(number); err != nil {
					failed[caller] = err
					return
				}
				took[caller] = append(took[caller], time.Since(began))
			}
		}(caller)
	}
	all.Wait()
	var times []time.Duration
	for caller := range took {
		if failed[caller] != nil {
			return outcome{}, failed[caller]
		}
		times = append(times, took[caller]...)
	}
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	at := func(part int) float64 { return times[len(times)*part/100].Seconds() }
	return outcome{Calls: len(times), P50: at(50), P99: at(99)}, nil
}

// Lets so many watches take so many events each: from a revision on, or those that are put now.
func replay(client *clientv3.Client, watches int, revision int64, count int) (outcome, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all, created sync.WaitGroup
	var seen atomic.Int64
	for watch := 0; watch < watches; watch++ {
		all.Add(1)
		created.Add(1)
		go func() {
			defer all.Done()
			isCreated := false
			options := []clientv3.OpOption{
				clientv3.WithPrefix(), clientv3.WithRev(revision), clientv3.WithCreatedNotify(),
			}
			for own := 0; own < count; {
				for answer := range client.Watch(ctx, "/w/", options...) {
					if !isCreated {
						isCreated = true
						created.Done()
					}
					own += len(answer.Events)
					seen.Add(int64(len(answer.Events)))
					if own >= count {
						break
					}
				}
			}
		}()
	}
	if revision == 0 {
		created.Wait()
		for number := 0; number < count; number++ {
			if _, err := client.Put(ctx, fmt.Sprintf("/w/%d", number%100), strings.Repeat("v", 64)); err != nil {
				return outcome{}, err
			}
		}
	}
	all.Wait()
	return outcome{Calls: int(seen.Load())}, nil
}

// The seconds of CPU that this process has used.
func cpu() float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return float64(used.Utime.Sec+used.Stime.Sec) + float64(used.Utime.Usec+used.Stime.Usec)/1e6
}
