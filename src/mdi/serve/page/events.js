// Server-sent events of a response. EventSource cannot send an API key, nor a body.
// https://html.spec.whatwg.org/multipage/server-sent-events.html

/**
 * Yields `{name, data}` for each event.
 *
 * Throws `TypeError`, as `fetch` does, where the connection breaks or says nothing for `patienceS` seconds: the server
 * sends at least a comment every second or two, and a phone that changed its network would wait for ever.
 */
export async function* events(response, patienceS = 20) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    try {
        for (;;) {
            const { done, value } = await within(reader.read(), patienceS);
            if (done) return;
            const blocks = (buffer + value).split(/\r\n\r\n|\n\n/);
            buffer = blocks.pop();
            for (const block of blocks) {
                const event = parse(block);
                if (event.data !== null) yield event;
            }
        }
    } finally {
        reader.cancel().catch(() => {}); // closes the connection, which is how the server learns that nobody reads
    }
}

function parse(block) {
    const event = { name: "message", data: null };
    for (const line of block.split(/\r\n|\n/)) {
        const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
        if (field === "event") event.name = value;
        if (field === "data") event.data = event.data === null ? value : `${event.data}\n${value}`;
    }
    return event;
}

function within(promise, patienceS) {
    let timer;
    const silence = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new TypeError("silence")), patienceS * 1000);
    });
    return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}
