package devstack

import (
	"math/rand/v2"
	"slices"
)

// A crowd is customers who come in turn, each with wishes of its own.
type crowd struct {
	chance *rand.Rand
	turns  *deck[*visitor]
}

// A visitor is a customer of a crowd.
type visitor struct {
	customer

	wishes *deck[wish]
}

// newCrowd returns the customers in an order that chance decides.
func newCrowd(chance *rand.Rand) *crowd {
	c := &crowd{chance: chance, turns: &deck[*visitor]{}}
	for _, who := range customers() {
		v := &visitor{customer: who, wishes: &deck[wish]{}}
		for _, p := range who.wishes {
			v.wishes.put(p.wish, p.n)
		}
		c.turns.put(v, who.share)
	}
	return c
}

// next returns the next request.
func (c *crowd) next() sample {
	v := c.turns.draw(c.chance)
	s := v.wishes.draw(c.chance)(c.chance)
	s.customer = v.name
	if v.key != "" {
		s.header["Authorization"] = "Bearer " + v.key
	}
	// Most leave their priority to their tier. A tier's own is the highest that is
	// granted.
	if asked := c.chance.IntN(8); asked < 4 {
		s.header["X-Request-Priority"] = []string{"low", "normal", "high", "critical"}[asked]
	}
	return s
}

// A deck gives its cards by chance, each once before any comes again. So what is
// rare comes too, whatever the chance.
type deck[T any] struct {
	cards []T
	drawn int
}

func (d *deck[T]) put(card T, times int) {
	d.cards = append(d.cards, slices.Repeat([]T{card}, times)...)
}

func (d *deck[T]) draw(chance *rand.Rand) T {
	if d.drawn == 0 {
		chance.Shuffle(len(d.cards), func(i, j int) { d.cards[i], d.cards[j] = d.cards[j], d.cards[i] })
	}
	card := d.cards[d.drawn]
	d.drawn = (d.drawn + 1) % len(d.cards)
	return card
}

// A customer is somebody who sends requests.
type customer struct {
	name   string // in the summary
	key    string // empty: none is sent
	share  int    // of all requests, in hundredths
	wishes []portion
}

// A portion is how often a wish comes among a customer's others.
type portion struct {
	n    int
	wish wish
}

// customers are chosen for the shipped tiers at 15 requests per second, 900 per
// minute: free asks for 45 where 10 are its limit, basic for 63 of 50, and pro for
// 117 of 100. Each also asks for more tokens than it has: at times too many at once,
// and at times a single answer larger than its limit.
func customers() []customer {
	talk := []portion{{7, chat}, {5, stream}, {1, leftStream}}
	forms := []portion{{2, responses}, {2, messages}, {1, completion}}
	small := []portion{{3, embeddings}, {1, moderation}, {1, models}}
	media := []portion{{2, images}, {1, speech}, {1, transcription}}
	rare := []portion{{1, listFiles}, {1, upload}, {1, failing}, {1, long(200_000)}}
	free := []portion{{4, chat}, {2, stream}, {1, leftStream}, {1, embeddings}, {1, models}, {3, long(25_000)}, {1, tooLong(60_000)}}
	basic := slices.Concat(talk, small, []portion{{1, images}, {3, long(80_000)}, {1, tooLong(400_000)}})
	pro := slices.Concat(talk, forms, media, rare, []portion{{2, long(200_000)}, {1, tooLong(2_000_000)}})
	enterprise := slices.Concat(talk, talk, forms, small, media, rare)
	return []customer{
		{"sk-demo-free", "sk-demo-free", 5, free},
		{"sk-demo-basic", "sk-demo-basic", 7, basic},
		{"sk-demo-pro", "sk-demo-pro", 13, pro},
		{"sk-demo-enterprise", "sk-demo-enterprise", 71, enterprise},
		{"(no key)", "", 2, []portion{{2, chat}, {1, models}}},
		{"(unknown key)", "sk-demo-unknown", 2, []portion{{2, chat}, {1, embeddings}}},
	}
}
