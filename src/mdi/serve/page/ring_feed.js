// What the ring does, as the server tells it, for as long as somebody looks.

const LONGEST_PAUSE_MS = 10_000;

export class RingFeed {
    #server;
    #onSnapshot;
    #onProblem;
    #connection = null;
    #failures = 0;
    #timer = null;

    /** Calls `onSnapshot(snapshot)`, and `onProblem(error)` where there is none to be had for the moment. */
    constructor(server, onSnapshot, onProblem) {
        this.#server = server;
        this.#onSnapshot = onSnapshot;
        this.#onProblem = onProblem;
        // A page in the background would keep a connection, and a thread of the server.
        document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
    }

    start() {
        this.stop();
        this.#failures = 0;
        this.#connect();
    }

    stop() {
        clearTimeout(this.#timer);
        this.#connection?.abort();
        this.#connection = null;
    }

    async #connect() {
        const connection = new AbortController();
        this.#connection = connection;
        let problem = null;
        try {
            for await (const snapshot of this.#server.ring(connection.signal)) {
                this.#failures = 0;
                this.#onSnapshot(snapshot);
            }
        } catch (error) {
            if (error.name !== "AbortError" && error.status === undefined) throw error; // a fault of this page
            problem = error;
        }
        if (this.#connection === connection) this.#connectLater(problem);
    }

    /** A server that ends a stream in order is asked again at once; one that fails, after ever longer pauses. */
    #connectLater(problem) {
        this.#failures += 1;
        if (problem !== null) this.#onProblem(problem);
        if (problem?.status === 401) return; // until there is another key
        this.#timer = setTimeout(() => this.#connect(), Math.min(LONGEST_PAUSE_MS, 500 * 2 ** (this.#failures - 1)));
    }
}
