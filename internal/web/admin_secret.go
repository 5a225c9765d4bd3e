package web

import (
	"slices"

	"github.com/tiergate/tiergate/internal/apikey"
)

// takeID takes out the ID of a new key, or makes one.
func (a *AdminAccounts) takeID(o *object) string {
	var id string
	_, given := o.fields["id"]
	if given && !take(o, "id", aText, &id) {
		return ""
	}
	if id == "" {
		return apikey.NewID()
	}
	err := apikey.CheckID(id)
	switch {
	case err != nil:
		o.fault("id", "%v", err)
	case id == "import" || id == "export":
		o.fault("id", "%s is a path of this API: choose another", id)
	case a.Keys.File.ByID(id) != nil:
		o.fault("id", "the file of keys has a key %s: choose another", id)
	case a.Keys.ByID(id) != nil:
		o.fault("id", "there is a key %s already: choose another", id)
	default:
		return id
	}
	return ""
}

// takePepper takes out the name of a pepper, and returns how to hash with it; without
// one, as was usual so far.
func (a *AdminAccounts) takePepper(o *object, usual string) func(apikey.Key) apikey.Hash {
	name := usual
	take(o, "pepper", aText, &name)
	if name == "" {
		return apikey.Key.Hash
	}
	i := slices.IndexFunc(a.Peppers, func(p apikey.Pepper) bool { return p.Name() == name })
	if i < 0 {
		o.fault("pepper", "the configuration has no pepper of this name under keys.peppers")
		return apikey.Key.Hash
	}
	return func(k apikey.Key) apikey.Hash { return k.HashWith(a.Peppers[i]) }
}

// takeHash takes out what is known of the secret of an imported key: the secret itself
// or its hash; and of a secret the hash without a pepper.
func (a *AdminAccounts) takeHash(o *object) (h, plain apikey.Hash) {
	var secret, text string
	_, hasPepper := o.fields["pepper"]
	hash := a.takePepper(o, "")
	hasSecret, hasHash := take(o, "secret", aText, &secret), take(o, "hash", aText, &text)
	switch {
	case hasSecret && hasHash:
		o.fault("secret", "a hash too: want one of the two")
	case hasSecret:
		return a.hashSecret(o, secret, hash)
	case hasHash && hasPepper:
		o.fault("pepper", "goes with a secret: the hash names its own")
	case hasHash:
		return a.parseHash(o, "hash", text), apikey.Hash{}
	case !o.faulty("secret") && !o.faulty("hash"):
		o.fault("secret", "missing, and the hash too: want one of the two")
	}
	return apikey.Hash{}, apikey.Hash{}
}

func (a *AdminAccounts) hashSecret(o *object, secret string, hash func(apikey.Key) apikey.Hash) (h, plain apikey.Hash) {
	key, err := apikey.ParseForeign(secret)
	if err != nil {
		o.fault("secret", "%s", err)
		return apikey.Hash{}, apikey.Hash{}
	}
	if twin, _ := a.Keys.Lookup(key); twin != nil {
		o.fault("secret", "key %s has it already", twin.ID)
	}
	return hash(key), key.Hash()
}

// parseHash reads a hash that no key has, and whose pepper is configured.
func (a *AdminAccounts) parseHash(o *object, field, text string) apikey.Hash {
	h, err := apikey.ParseHash(text)
	if err != nil {
		o.fault(field, "%v", err)
		return apikey.Hash{}
	}
	if name := h.Pepper(); name != "" && !slices.ContainsFunc(a.Peppers, func(p apikey.Pepper) bool { return p.Name() == name }) {
		o.fault(field, "names a pepper that the configuration does not have under keys.peppers")
	}
	if twin := a.Keys.Twin(h); twin != nil {
		o.fault(field, "key %s has it already", twin.ID)
	}
	return h
}
