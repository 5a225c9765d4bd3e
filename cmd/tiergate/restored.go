package main

import "github.com/tiergate/tiergate/internal/apikey"

// tellRestored says what is undone where the store has an older state of its keys than this
// process knew: no key is ever taken out of it, and what is revoked stays so.
func (d *directory) tellRestored(known, now *apikey.Directory) {
	var revoked, replaced, changed, gone int
	var example string
	for r := range known.All {
		n := now.ByID(r.ID)
		switch {
		case n == nil:
			gone++
		case r.Revoked && !n.Revoked:
			revoked++
		case n.Revision <= r.Revision && n.Hash != r.Hash:
			replaced++
		case n.Revision < r.Revision:
			changed++
		default:
			continue
		}
		if example == "" || n != nil {
			example = r.ID
		}
	}
	if example != "" {
		d.log.Warn("the store has an older state of its keys, as where a backup was restored: revoke, rotate and change again what was since",
			"revoked_keys_work", revoked, "replaced_secrets_work", replaced, "changes_undone", changed, "keys_gone", gone, "key_id", example)
	}
}
