// Errors of the server in plain sentences.

export function explain(error, hadKey) {
    if (error.status === 0) return "The server does not answer. It may have been stopped, or the network is down.";
    if (error.status === 401)
        return hadKey ? "The server does not know this API key." : "This server asks for an API key.";
    if (error.status === 429) return "The server is busy: as many requests wait already as it takes.";
    if (error.status === 503) return `The ring cannot answer now: ${sentence(error.message)}`;
    if (error.code === "context_length_exceeded") {
        return "This conversation no longer fits into the model's context. Start a new chat, or edit a message.";
    }
    if (error.status === 413) return "This conversation is too large for the server. Start a new chat.";
    if (error.status >= 500) return `The server could not finish: ${sentence(error.message)}`;
    return `The server refused this: ${sentence(error.message)}`;
}

/** Whether the same request may succeed a little later. */
export function isPassing(error) {
    return error.status === 429 || (error.status === 503 && error.retryAfterS !== null);
}

function sentence(message) {
    return /[.!?]$/.test(message) ? message : `${message}.`;
}
