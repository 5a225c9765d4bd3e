package quota

// TokenRules say what requests for a resource are taken to use where they do not
// say it themselves, in tokens.
type TokenRules struct {
	MaxInput  int64 // the longest prompt; no estimate goes beyond it
	Output    int64 // of an answer, where nothing is declared and nothing learnt
	MaxOutput int64 // of an answer, where the body could not be read
	Cap       int64 // the most that is reserved for what is declared; 0: all of it
}

// A Body is what is known of a request's body before it is answered.
type Body struct {
	Bytes    int64 // its length; Unknown: there may be any
	Read     bool  // whether all of it was read, so that what is not declared is not there
	Declared int64 // the most output tokens of one answer that it allows; Unknown: it does not say
	Choices  int64 // how many answers it asks for; less than 1 is 1

	Background bool // it is worked on after its answer, which therefore does not say what it uses
}

// bytesPerToken is how long a token is in English text, on average; the usual
// rule of thumb, and on the safe side with JSON around.
const bytesPerToken = 4

// MaxModelWeight is the most that a token can count.
const MaxModelWeight = 1000.0

// A Source is where the number of tokens comes from that is reserved.
type Source string

// The sources.
const (
	ByNothing     Source = "nothing"     // no body: no tokens
	ByDeclaration Source = "declaration" // the request's
	ByHistory     Source = "history"     // of the key's recent requests
	ByDefault     Source = "default"     // of the resource
	ByMaximum     Source = "maximum"     // of the resource: the body was not read, or is of unknown length or longer, or Background
	ByLength      Source = "length"      // of the body; for the prompt
)

// Reserve returns what to reserve for a request: what it declares, and what is
// estimated beside that. learnt is what an answer to this key has used lately,
// Unknown where that is not known; weight is what a token counts.
func (b Body) Reserve(rules TokenRules, learnt int64, weight float64) (declared, estimate Cost, from Source) {
	if b.Bytes == 0 {
		return Cost{}, Cost{}, ByNothing
	}
	weighted := func(tokens int64) int64 { return Weigh(min(tokens, MaxCost), weight) }
	input, _ := b.Input(rules)
	output := rules.MaxOutput
	switch {
	case !b.Read:
		from = ByMaximum
	case b.Declared >= 0:
		from = ByDeclaration
		output = b.times(b.Declared)
		if rules.Cap > 0 {
			output = min(output, rules.Cap)
		}
		declared.OutputTokens = weighted(output)
		declared.Tokens = declared.OutputTokens
		output = 0
	case b.Background:
		from, output = ByMaximum, b.times(rules.MaxOutput)
	case learnt >= 0:
		from, output = ByHistory, b.times(learnt)
	default:
		from, output = ByDefault, b.times(rules.Output)
	}
	estimate.InputTokens, estimate.OutputTokens = weighted(input), weighted(output)
	estimate.Tokens = weighted(input + output)
	return declared, estimate, from
}

// Input returns how many tokens the prompt is taken to have, and where that comes from.
func (b Body) Input(rules TokenRules) (tokens int64, from Source) {
	tokens = (b.Bytes-1)/bytesPerToken + 1
	switch {
	case b.Bytes == 0:
		return 0, ByNothing
	case b.Bytes < 0 || tokens > rules.MaxInput:
		return rules.MaxInput, ByMaximum
	default:
		return tokens, ByLength
	}
}

// times returns the tokens of all answers.
func (b Body) times(tokens int64) int64 {
	return min(tokens, MaxCost) * min(max(b.Choices, 1), MaxCost) // both at most 1e9, so this does not overflow
}
