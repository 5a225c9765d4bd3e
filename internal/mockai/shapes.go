package mockai

import (
	"encoding/json"
	"slices"
)

type object map[string]any

// A shape is how an endpoint answers.
type shape struct {
	answer func(request) any
	events func(request) []event // nil: never streams
	media  string                // content type of an answer that is no JSON
}

// An event is one server-sent event.
type event struct {
	name string
	data string
}

func shapes() map[string]shape {
	return map[string]shape{
		"POST /v1/chat/completions":     {answer: chat, events: chatEvents},
		"POST /v1/completions":          {answer: completion},
		"POST /v1/responses":            {answer: response, events: responseEvents},
		"POST /v1/messages":             {answer: message, events: messageEvents},
		"POST /v1/embeddings":           {answer: embedding},
		"POST /v1/moderations":          {answer: moderation},
		"POST /v1/images/generations":   {answer: image},
		"POST /v1/audio/speech":         {media: "audio/mpeg"},
		"POST /v1/audio/transcriptions": {answer: transcription},
		"GET /v1/models":                {answer: models},
		"POST /v1/files":                {answer: file},
		"GET /v1/files":                 {answer: files},
	}
}

// with adds the usage, if one is reported, under the names of the shape.
func (q request) with(o object, prompt, completion, total string) object {
	if q.usage == nil {
		return o
	}
	u := object{prompt: q.usage.prompt, completion: q.usage.completion}
	if total != "" {
		u[total] = q.usage.prompt + q.usage.completion
	}
	switch {
	case q.usage.cached == 0:
	case total == "": // Anthropic's: beside the others
		u[prompt], u["cache_read_input_tokens"] = q.usage.prompt-q.usage.cached, q.usage.cached
	default: // OpenAI's: a part of them
		u[prompt+"_details"] = object{"cached_tokens": q.usage.cached}
	}
	if q.both {
		u["input_tokens"], u["output_tokens"] = 0, 0
		delete(u, total)
	}
	o["usage"] = u
	return o
}

func (q request) withOpenAI(o object) object {
	return q.with(o, "prompt_tokens", "completion_tokens", "total_tokens")
}

func chat(q request) any {
	return q.withOpenAI(object{
		"id": "chatcmpl-mock", "object": "chat.completion", "created": 0, "model": q.Model,
		"choices": []object{{
			"index": 0, "finish_reason": "stop", "message": object{"role": "assistant", "content": q.text},
		}},
	})
}

// chatEvents spreads the text over the chunks; the last one has the usage, or each
// that so far.
func chatEvents(q request) []event {
	chunk := func(choices []object) object {
		return object{"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": q.Model, "choices": choices}
	}
	var events []event
	for i, part := range parts(q.text, q.chunks) {
		o := chunk([]object{{"index": 0, "delta": object{"content": part}, "finish_reason": nil}})
		if q.Options.Continuous && q.usage != nil {
			so := *q.usage
			so.completion = so.completion * (i + 1) / q.chunks
			o = request{usage: &so}.withOpenAI(o)
		}
		events = append(events, data("", o))
	}
	events = append(events, data("", chunk([]object{{"index": 0, "delta": object{}, "finish_reason": "stop"}})))
	if q.usage != nil {
		events = append(events, data("", q.withOpenAI(chunk([]object{}))))
	}
	return append(events, event{data: "[DONE]"})
}

func completion(q request) any {
	return q.withOpenAI(object{
		"id": "cmpl-mock", "object": "text_completion", "created": 0, "model": q.Model,
		"choices": []object{{"index": 0, "finish_reason": "stop", "text": q.text}},
	})
}

func response(q request) any {
	return q.with(object{
		"id": "resp-mock", "object": "response", "created_at": 0, "status": "completed", "model": q.Model,
		"output": []object{{
			"type": "message", "id": "msg-mock", "role": "assistant", "status": "completed",
			"content": []object{{"type": "output_text", "text": q.text, "annotations": []object{}}},
		}},
		"parallel_tool_calls": false, "tool_choice": "auto", "tools": []object{},
	}, "input_tokens", "output_tokens", "total_tokens")
}

// responseEvents ends with the whole response, which has the usage.
func responseEvents(q request) []event {
	events := []event{data("response.created", object{"type": "response.created", "response": object{"id": "resp-mock", "status": "in_progress"}})}
	for _, part := range parts(q.text, q.chunks) {
		events = append(events, data("response.output_text.delta", object{"type": "response.output_text.delta", "delta": part}))
	}
	return append(events, data("response.completed", object{"type": "response.completed", "response": response(q)}))
}

func message(q request) any {
	return q.with(object{
		"id": "msg-mock", "type": "message", "role": "assistant", "model": q.Model, "stop_reason": "end_turn",
		"content": []object{{"type": "text", "text": q.text}},
	}, "input_tokens", "output_tokens", "")
}

func messageEvents(q request) []event {
	start := object{"id": "msg-mock", "type": "message", "role": "assistant", "model": q.Model, "content": []object{}}
	events := []event{
		data("message_start", object{"type": "message_start", "message": q.with(start, "input_tokens", "output_tokens", "")}),
		data("content_block_start", object{
			"type": "content_block_start", "index": 0, "content_block": object{"type": "text", "text": ""},
		}),
	}
	for _, part := range parts(q.text, q.chunks) {
		events = append(events, data("content_block_delta", object{
			"type": "content_block_delta", "index": 0, "delta": object{"type": "text_delta", "text": part},
		}))
	}
	delta := object{"type": "message_delta", "delta": object{"stop_reason": "end_turn"}}
	return append(events,
		data("content_block_stop", object{"type": "content_block_stop", "index": 0}),
		data("message_delta", q.with(delta, "input_tokens", "output_tokens", "")),
		data("message_stop", object{"type": "message_stop"}),
	)
}

func embedding(q request) any {
	o := object{
		"object": "list", "model": q.Model,
		"data": []object{{"object": "embedding", "index": 0, "embedding": []float64{0.1, 0.2, 0.3}}},
	}
	if q.usage != nil {
		o["usage"] = object{"prompt_tokens": q.usage.prompt, "total_tokens": q.usage.prompt}
	}
	return o
}

func moderation(q request) any {
	return object{"id": "modr-mock", "model": q.Model, "results": []object{{"flagged": false, "categories": object{}, "category_scores": object{}}}}
}

func image(q request) any {
	return q.with(object{"created": 0, "data": []object{{"b64_json": q.text}}}, "input_tokens", "output_tokens", "total_tokens")
}

func transcription(q request) any {
	return q.with(object{"text": q.text}, "input_tokens", "output_tokens", "total_tokens")
}

func file(request) any {
	return object{"id": "file-mock", "object": "file", "bytes": 0, "created_at": 0, "filename": "mock", "purpose": "user_data"}
}

// files are none: what is uploaded is not kept.
func files(request) any { return object{"object": "list", "data": []object{}} }

func models(request) any {
	return object{"object": "list", "data": []object{{"id": "mock-1", "object": "model", "created": 0, "owned_by": "mock"}}}
}

// parts cuts a text into n pieces, as even as they can be.
func parts(text string, n int) []string {
	size := max(1, (len(text)+n-1)/n)
	var pieces []string
	for piece := range slices.Chunk([]byte(text), size) {
		pieces = append(pieces, string(piece))
	}
	for len(pieces) < n {
		pieces = append(pieces, "")
	}
	return pieces
}

func data(name string, v any) event {
	text, err := json.Marshal(v)
	if err != nil { // texts and numbers always encode
		return event{name: name, data: "{}"}
	}
	return event{name: name, data: string(text)}
}
