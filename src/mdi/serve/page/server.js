// The server that this page came from: its routes, its key, its errors.

import { events } from "./events.js";
import { thisTab } from "./store.js";

/** A request that was not served. `status` is 0 where the server did not answer at all. */
export class ServerError extends Error {
    constructor(message, { status = 0, code = null, retryAfterS = null } = {}) {
        super(message);
        Object.assign(this, { status, code, retryAfterS });
    }
}

export class Server {
    #key = thisTab.load("key", "");

    get hasKey() {
        return this.#key !== "";
    }

    useKey(key) {
        this.#key = key.trim();
        thisTab.save("key", this.#key);
    }

    /** The model that is served, as `{id, context_length}`. */
    async model() {
        const response = await this.#fetch("/v1/models");
        return (await response.json()).data[0];
    }

    /** Yields the chunks of a chat completion. It has ended well if the last one was followed by `null`. */
    async *chat(body, signal) {
        const response = await this.#fetch("/v1/chat/completions", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
            signal,
        });
        for await (const { name, data } of this.#read(response)) {
            if (name === "error") throw new ServerError(JSON.parse(data).error.message, { status: 500 });
            yield data === "[DONE]" ? null : JSON.parse(data);
        }
    }

    /** Yields what the ring does, twice a second. */
    async *ring(signal) {
        const response = await this.#fetch("/ring/events", { signal });
        for await (const { data } of this.#read(response, 8)) yield JSON.parse(data);
    }

    async #fetch(path, options = {}) {
        const headers = { ...options.headers };
        if (this.hasKey) headers.Authorization = `Bearer ${this.#key}`;
        let response;
        try {
            response = await fetch(path, { ...options, headers, cache: "no-store" });
        } catch (error) {
            throw translated(error);
        }
        if (!response.ok) throw await refusal(response);
        return response;
    }

    async *#read(response, patienceS) {
        try {
            yield* events(response, patienceS);
        } catch (error) {
            throw translated(error);
        }
    }
}

/** `fetch` throws a TypeError for every failure of the network. What was aborted stays an AbortError. */
function translated(error) {
    return error instanceof TypeError ? new ServerError("no answer") : error;
}

async function refusal(response) {
    const { message, code } = await response.json().then(
        (body) => body.error,
        () => ({ message: response.statusText, code: null }), // a proxy's own page
    );
    const retryAfter = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    return new ServerError(message, {
        status: response.status,
        code,
        retryAfterS: Number.isNaN(retryAfter) ? null : retryAfter,
    });
}
