package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/web"
)

const (
	// One call to import. The server takes apikey.MaxChanges keys and 4 MiB.
	chunkKeys  = apikey.MaxChanges
	chunkBytes = 3 << 20
)

// keysImport takes up keys: those of a file or of standard input. Faults of all of them
// are told before any is written.
func keysImport(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys import", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	dry := flags.Bool("dry-run", false, "only look for faults")
	skip := flags.Int("skip", 0, "leave out so many keys at the beginning: those that are in already")
	files, err := parseArgs(flags, args, env, "[FILE]")
	if err != nil {
		return err
	}
	if *skip < 0 {
		return usagef("--skip %d: want 0 or more", *skip)
	}
	c, err := f.client(env)
	if err != nil {
		return err
	}
	entries, err := readEntries(files, env)
	if err != nil {
		return err
	}
	if *skip >= len(entries) {
		return fmt.Errorf("--skip %d leaves out all there is, %s: nothing to import", *skip, counted(len(entries), "key"))
	}
	chunks := cut(entries, *skip)
	if err := c.checkAll(ctx, chunks); err != nil {
		return err
	}
	done := web.Imported{Count: len(entries) - *skip, DryRun: *dry}
	if !*dry {
		if done.IDs, err = c.importAll(ctx, chunks); err != nil {
			return err
		}
	}
	if f.asJSON {
		return printJSON(env.stdout, done)
	}
	fmt.Fprintf(env.stdout, "%s %s\n", map[bool]string{true: "no fault in", false: "imported"}[*dry], counted(done.Count, "key"))
	return nil
}

// readEntries reads keys as JSON: one after the other, as keys export prints them, or a
// list, or an object with such a list under keys. FILE is - or left out for standard
// input.
func readEntries(files []string, env environment) ([]json.RawMessage, error) {
	name, content, err := readKeys(files, env)
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	var entries []json.RawMessage
	for {
		var one json.RawMessage
		err := decoder.Decode(&one)
		if errors.Is(err, io.EOF) && len(entries) > 0 {
			return entries, nil
		}
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s has no keys: want a key a line, or a list of keys, as JSON", name)
		}
		if err != nil { // its text may quote what was read, which may be a secret
			return nil, fmt.Errorf("%s is not JSON after key %d, in line %d: want a key a line, or a list of keys", name, len(entries), faultyLine(content, decoder.InputOffset()))
		}
		var whole struct{ Keys []json.RawMessage }
		var some []json.RawMessage
		switch {
		case json.Unmarshal(one, &some) == nil:
			entries = append(entries, some...)
		case json.Unmarshal(one, &whole) == nil && whole.Keys != nil:
			entries = append(entries, whole.Keys...)
		default:
			entries = append(entries, one)
		}
	}
}

// readKeys reads the file that is named, or standard input.
func readKeys(files []string, env environment) (name string, content []byte, err error) {
	if len(files) > 0 && files[0] != "-" {
		content, err = os.ReadFile(files[0]) //nolint:gosec // whoever calls the program names the file
		return files[0], content, err        //nolint:wrapcheck // it says what was tried
	}
	if content, err = io.ReadAll(env.stdin); err != nil {
		err = fmt.Errorf("read standard input: %w", err)
	}
	return "standard input", content, err
}

// faultyLine is the line in which JSON behind an offset goes wrong, counted from 1.
func faultyLine(content []byte, offset int64) int {
	rest := bytes.TrimRight(content[offset:], "\r\n\t ")
	if fault, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(rest, new(json.RawMessage))); ok {
		offset += max(fault.Offset, 1) - 1
	}
	return 1 + bytes.Count(content[:offset], []byte("\n"))
}

// A chunk is what one call imports.
type chunk struct {
	first int // the number of its first entry, counted from 1
	keys  []json.RawMessage
}

func (c chunk) last() int { return c.first + len(c.keys) - 1 }

// cut divides all entries but the first few.
func cut(entries []json.RawMessage, skip int) []chunk {
	var chunks []chunk
	size := 0
	for i, entry := range entries[skip:] {
		if n := len(chunks) - 1; n >= 0 && len(chunks[n].keys) < chunkKeys && size+len(entry) <= chunkBytes {
			chunks[n].keys = append(chunks[n].keys, entry)
			size += len(entry)
			continue
		}
		chunks, size = append(chunks, chunk{skip + i + 1, []json.RawMessage{entry}}), len(entry)
	}
	return chunks
}

// checkAll lets the server look for faults, and looks for what only the whole can show.
func (c *adminClient) checkAll(ctx context.Context, chunks []chunk) error {
	faults := twins(chunks)
	for _, part := range chunks {
		_, err := c.send(ctx, part, true)
		var refused *serverError
		switch {
		case errors.As(err, &refused) && len(refused.Errors) > 0:
			faults = append(faults, part.renumber(refused.Errors)...)
		case err != nil:
			return err
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("nothing is imported: %w", invalidRequest(faults))
	}
	return nil
}

// invalidRequest is what a server answers where a request has faults.
func invalidRequest(faults []web.Fault) *serverError {
	return &serverError{Type: problemInvalid, Title: "The request is not valid", Status: http.StatusBadRequest, Detail: web.Summary(faults), Errors: faults}
}

// twins finds keys that cannot both be, and that no single call would show to the server.
func twins(chunks []chunk) []web.Fault {
	type place struct{ chunk, number int }
	var faults []web.Fault
	seen := map[string]place{}
	for n, part := range chunks {
		for i, entry := range part.keys {
			var e struct{ ID, Hash, Secret string }
			if json.Unmarshal(entry, &e) != nil {
				continue // the server says what is wrong
			}
			here := place{n, part.first + i}
			for _, field := range [][2]string{{"id", e.ID}, {"hash", e.Hash}, {"secret", e.Secret}} {
				first, twice := seen[field[0]+field[1]]
				switch {
				case field[1] == "":
				case !twice:
					seen[field[0]+field[1]] = here
				case first.chunk != n:
					faults = append(faults, web.Fault{Field: entryName(here.number) + field[0], Problem: "entry " + strconv.Itoa(first.number) + " has it too"})
				}
			}
		}
	}
	return faults
}

func entryName(n int) string { return "entry " + strconv.Itoa(n) + ": " }

// renumber names the entries of faults by their place in the whole.
func (c chunk) renumber(faults []web.Fault) []web.Fault {
	index := regexp.MustCompile(`keys\[(\d+)\]\.?`)
	number := func(text, after string) string {
		return index.ReplaceAllStringFunc(text, func(found string) string {
			i, err := strconv.Atoi(index.FindStringSubmatch(found)[1])
			if err != nil {
				return found
			}
			return "entry " + strconv.Itoa(c.first+i) + after
		})
	}
	numbered := make([]web.Fault, len(faults))
	for i, f := range faults {
		numbered[i] = web.Fault{Field: strings.TrimSuffix(number(f.Field, ": "), ": "), Problem: number(f.Problem, "")}
	}
	return numbered
}

// importAll writes chunk by chunk. On failure it says exactly how far it got.
func (c *adminClient) importAll(ctx context.Context, chunks []chunk) ([]string, error) {
	var ids []string
	for _, part := range chunks {
		done, err := c.send(ctx, part, false)
		if err != nil {
			return nil, part.stopped(err)
		}
		ids = append(ids, done.IDs...)
	}
	return ids, nil
}

// stopped says how far an import got that failed with a chunk.
func (c chunk) stopped(err error) error {
	before := c.first - 1
	var refused *serverError
	if errors.As(err, &refused) && refused.changedNothing() {
		if len(refused.Errors) > 0 {
			err = invalidRequest(c.renumber(refused.Errors))
		}
		return fmt.Errorf("entries up to %d are in, those from %d on are not; mend it and go on with --skip %d: %w", before, c.first, before, err)
	}
	return fmt.Errorf("entries up to %d are in, and %d to %d all or none: look with keys show, and go on with --skip %d or --skip %d: %w",
		before, c.first, c.last(), before, c.last(), err)
}

func (c *adminClient) send(ctx context.Context, part chunk, dry bool) (web.Imported, error) {
	answer, err := c.ask(ctx, http.MethodPost, "/keys/import", nil, map[string]any{"keys": part.keys, "dry_run": dry})
	if err != nil {
		return web.Imported{}, err
	}
	return into[web.Imported](answer)
}

// keysExport prints the records of all keys of the store, each on a line.
func keysExport(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys export", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	if err := parse(flags, args, env); err != nil {
		return err
	}
	l := list{request{http.MethodGet, "/keys/export", url.Values{}, nil}, "after", "keys", 0}
	if f.asJSON {
		return listed[json.RawMessage](ctx, f, env, l, nil)
	}
	c, err := f.client(env)
	if err != nil {
		return err
	}
	return c.walk(ctx, l, func(one json.RawMessage) error {
		if _, err := fmt.Fprintf(env.stdout, "%s\n", one); err != nil {
			return fmt.Errorf("print the keys: %w", err)
		}
		return nil
	})
}
