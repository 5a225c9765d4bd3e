package apikey

import (
	"errors"
	"time"
)

// MaxChanges is how many changes a directory takes in one step.
const MaxChanges = 1000

// A Change is what becomes of one record, and what the audit log says of it.
type Change struct {
	// Record is as it is to be. Its Revision is that of the record it changes, or 0
	// where there is to be none yet; the store counts it up.
	Record Record
	Event  Event
}

// An Event is an entry of the audit log: who has done what to which key, and when.
type Event struct {
	ID     string    `json:"id"` // set by the store; later ones are greater where compared as the store does
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Action string    `json:"action"` // create, import, change, rotate or revoke
	KeyID  string    `json:"key_id"`
	Detail string    `json:"detail,omitempty"` // for people; without secrets and hashes
}

// Reasons why a directory refuses changes. Nothing is changed then.
var (
	ErrConflict = errors.New("the key has been changed meanwhile: read it again")
	ErrTaken    = errors.New("there is such a key already")
	ErrRefused  = errors.New("nothing was changed") // with the store's reason behind it
	ErrLost     = errors.New("the store has lost the directory of keys: restore Redis from its backup, or export the keys from an instance that runs and import them through an extra one, " +
		"as docs/keys.md says under \"Back up and restore\"; restart no instance before: its memory may be the last copy")
)

// ErrNoEvent is the error of asking for what is before an event that cannot be.
var ErrNoEvent = errors.New("want the ID of an event")

// A KeyError says which key an error is about.
type KeyError struct {
	ID  string
	Err error
}

// Error returns the ID and the error's text.
func (e *KeyError) Error() string { return "key " + e.ID + ": " + e.Err.Error() }

// Unwrap returns the error.
func (e *KeyError) Unwrap() error { return e.Err }
