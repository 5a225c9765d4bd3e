package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
)

// Keys are those that one server has, with what part of the requests each makes.
type Keys struct {
	Share   float64   // of all requests, those of this server's keys
	Hottest float64   // of all requests, those of the key that makes most
	Count   int       // on this server
	upTo    []float64 // of each key, the shares of it and those before, up to 1
}

// Busiest deals keys out to servers at random, as the slots of a Cluster do, and returns
// those of the server with the most requests. The i-th key makes requests in proportion
// to i^-zipf: all as many with 0.
func Busiest(keys, servers int, zipf float64, seed uint64) Keys {
	weights := make([]float64, keys)
	sum := 0.0
	for i := range weights {
		weights[i] = math.Pow(float64(i+1), -zipf)
		sum += weights[i]
	}
	random := rand.New(rand.NewPCG(seed, 2))
	server, loads := make([]int, keys), make([]float64, servers)
	for i, w := range weights {
		server[i] = random.IntN(servers)
		loads[server[i]] += w
	}
	most := slices.Index(loads, slices.Max(loads))
	k := Keys{Share: loads[most] / sum, Hottest: weights[0] / sum}
	at := 0.0
	for i, w := range weights {
		if server[i] == most {
			at += w / loads[most]
			k.upTo = append(k.upTo, at)
		}
	}
	k.Count = len(k.upTo)
	return k
}

// draw picks a key by its share.
func (k Keys) draw(random *rand.Rand) int {
	if len(k.upTo) < 2 {
		return 0
	}
	return min(sort.SearchFloat64s(k.upTo, random.Float64()), len(k.upTo)-1)
}

// Seen is how many of all keys one of so many instances sees in an interval in which so
// many requests come to all: in the mean, where every key makes as many.
func Seen(keys, instances int, requests float64) float64 {
	return float64(keys) * -math.Expm1(-requests/float64(instances)/float64(keys))
}
