package rpc

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/test/bufconn"
)

// A script is what a client sends of one call, in frames.
type script struct {
	name string
	send func(p *peer)
}

// scripts are calls as gRPC has them and as it does not.
func scripts() []script {
	data := func(method string, end bool, all ...[]byte) func(p *peer) {
		return func(p *peer) {
			p.begin(1, method)
			for i, m := range all {
				_ = p.WriteData(1, end && i == len(all)-1, m)
			}
		}
	}
	with := func(method string, more ...string) func(p *peer) {
		return func(p *peer) {
			p.begin(1, method, more...)
			_ = p.WriteData(1, true, message("x"))
		}
	}
	compressed := message("x")
	compressed[0] = 1
	strange := message("x")
	strange[0] = 7
	huge := binary.BigEndian.AppendUint32([]byte{0}, 2<<20)
	two := append(message("x"), message("y")...)
	all := []script{
		{"a call", data("Echo", true, message("x"))},
		{"an empty message", data("Echo", true, message(""))},
		{"a message, and then its end", data("Echo", true, message("x"), nil)},
		{"no message", data("Echo", true, nil)},
		{"torn prefix", data("Echo", true, message("x")[:3])},
		{"torn message", data("Echo", true, message("xyz")[:6])},
		{"message byte by byte", data("Echo", true, split(message("xyz"))...)},
		{"compressed, not said how", data("Echo", true, compressed)},
		{"strange flag", data("Echo", true, strange)},
		{"too large", data("Echo", false, huge)},
		{"unknown method", data("Nothing", true, message("x"))},
		{"compressed", with("Echo", "grpc-encoding", "zstd")},
		{"identity", with("Echo", "grpc-encoding", "identity")},
		{"streamed twice", data("Talk", true, message("a"), message("b"))},
		{"streamed together", data("Talk", true, two)},
		{"streamed torn elsewhere", data("Listen", true, two[:8], two[8:])},
		{"streamed nothing", data("Talk", true, nil)},
		{"streamed torn", data("Talk", true, message("abc")[:6])},
		{"streamed compressed", data("Talk", true, compressed)},
		{"streamed too large", data("Listen", false, huge)},
		{"listened", data("Listen", true, message("a"), message("b"), message("c"))},
		{"expired", with("Wait", "grpc-timeout", "0n")},
		{"expires", with("Wait", "grpc-timeout", "10m")},
		{"type with a codec", func(p *peer) {
			fields := call("Echo")
			fields[len(fields)-1] = "application/grpc+proto"
			_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.encode(fields...)})
			_ = p.WriteData(1, true, message("x"))
		}},
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		all = append(all, script{"fails with " + code.String(), data("Fail", true, message(strconv.Itoa(int(code))))})
	}
	for _, timeout := range []string{"1H", "99999999H", "1S", "1", "H", "1x", "-1S", "+1S", "123456789S", "1 S", "00000001S", "99999999n", "0x1S", "1_0S"} {
		all = append(all, script{"timeout " + timeout, with("Echo", "grpc-timeout", timeout)})
	}
	return all
}

func split(b []byte) (all [][]byte) {
	for i := range b {
		all = append(all, b[i:i+1])
	}
	return all
}

// theirs starts grpc-go's server with the same service and the same bounds.
func theirs(t *testing.T) *bufconn.Listener {
	l := bufconn.Listen(64 << 10)
	s := grpc.NewServer(grpc.ForceServerCodec(plain{}), grpc.MaxRecvMsgSize(1<<20), grpc.MaxConcurrentStreams(100), grpc.MaxHeaderListSize(64<<10))
	newTester().register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l
}

// outcome is how a call has ended, without its words.
func outcome(p *peer) event {
	e := p.next()
	e.message = ""
	return e
}

// What a client sees of a call is what it would see of grpc-go's server.
func TestAnswersAreThoseOfGRPC(t *testing.T) {
	// Where it is not, there is a reason.
	differs := map[string]event{
		// grpc-go may reset a call whose time is over.
		"expired": {kind: "status", id: 1, code: int(codes.DeadlineExceeded)},
		"expires": {kind: "status", id: 1, code: int(codes.DeadlineExceeded)},
	}
	for _, s := range scripts() {
		t.Run(s.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var got, want event
				for into, l := range map[*event]*bufconn.Listener{&got: start(t, nil).listener, &want: theirs(t)} {
					p := (&rig{t: t, listener: l}).connect()
					s.send(p)
					*into = outcome(p)
				}
				if known, ok := differs[s.name]; ok {
					want = known
				}
				if got != want {
					t.Errorf("%+v: want %+v", got, want)
				}
			})
		})
	}
}

// Random calls on one connection, whole and torn, reset and mixed, end as they do with grpc-go's
// server.
func TestRandomCallsEndAsThoseOfGRPC(t *testing.T) {
	for seed := range uint64(200) {
		bubble(t, func(t *testing.T) {
			ended := map[bool]map[uint32]event{}
			for ours, l := range map[bool]*bufconn.Listener{true: start(t, nil).listener, false: theirs(t)} {
				p := (&rig{t: t, listener: l}).connect()
				go randomCalls(p, rand.New(rand.NewPCG(seed, 0)))
				ended[ours] = endings(p)
			}
			for id, want := range ended[false] {
				if got := ended[true][id]; got != want {
					t.Errorf("seed %d, call %d: %+v, want %+v", seed, id, got, want)
				}
			}
			if len(ended[true]) != len(ended[false]) {
				t.Errorf("seed %d: %d calls ended, want %d", seed, len(ended[true]), len(ended[false]))
			}
		})
	}
}

// calls is how many randomCalls makes beside the last.
const calls = 30

// randomCalls makes calls whose frames are mixed; the last is whole.
func randomCalls(p *peer, r *rand.Rand) {
	type open struct {
		id   uint32
		rest []byte
	}
	methods := []string{"Echo", "Echo", "Fail", "Talk", "Listen", "Nothing"}
	var all []*open
	next := uint32(1)
	for next < 2*calls || len(all) > 0 {
		if next < 2*calls && r.IntN(3) == 0 {
			o := &open{id: next, rest: message(strconv.Itoa(1 + r.IntN(16)))}
			next += 2
			if r.IntN(5) == 0 {
				o.rest[0] = 1
			}
			if r.IntN(5) == 0 {
				o.rest = o.rest[:r.IntN(len(o.rest))]
			}
			p.begin(o.id, methods[r.IntN(len(methods))])
			all = append(all, o)
			continue
		}
		if len(all) == 0 {
			continue
		}
		i := r.IntN(len(all))
		o := all[i]
		n := r.IntN(len(o.rest) + 1)
		end := n == len(o.rest)
		if r.IntN(2) == 0 {
			_ = p.WriteDataPadded(o.id, end, o.rest[:n], make([]byte, r.IntN(10)))
		} else {
			_ = p.WriteData(o.id, end, o.rest[:n])
		}
		if o.rest = o.rest[n:]; end {
			all = append(all[:i], all[i+1:]...)
		}
	}
	p.ask(next, "Echo", "the last")
}

// endings reads how calls end, until nothing comes any more.
func endings(p *peer) map[uint32]event {
	all := map[uint32]event{}
	for {
		e := outcome(p)
		switch e.kind {
		case "status", "http":
			all[e.id] = e
		case "reset": // what follows an answer says nothing more
			if _, ok := all[e.id]; !ok {
				all[e.id] = e
			}
		default:
			return all
		}
	}
}
