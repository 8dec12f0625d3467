// The page put together.

import { Announcer } from "./announcer.js";
import { Chat } from "./chat.js";
import { ChatView } from "./chat_view.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { setText } from "./dom.js";
import { explain } from "./explain.js";
import { KeyDialog } from "./key_dialog.js";
import { RingFeed } from "./ring_feed.js";
import { RingPanel } from "./ring_panel.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";

const byId = (id) => document.getElementById(id);

const server = new Server();
const announcer = new Announcer(byId("announcements"));
const settings = new Settings(byId("settings-form"));
const keyDialog = new KeyDialog(byId("key-dialog"), server);

const panel = new RingPanel(byId("ring"), announcer);
const feed = new RingFeed(server, showRing, noRing);

function showRing(snapshot) {
    panel.show(snapshot);
    nameModel(snapshot.model); // another one, after the server was started anew
}

function noRing(error) {
    panel.fail(error, server.hasKey);
    if (error.status === 401) askForKey(explain(error, server.hasKey));
}

async function askForKey(sentence) {
    const isGiven = await keyDialog.ask(sentence);
    if (isGiven) feed.start();
    return isGiven;
}

let modelName = null;

function nameModel(name) {
    modelName = name;
    for (const node of document.querySelectorAll(".model-name")) setText(node, name);
}

async function model() {
    if (modelName === null) nameModel((await server.model()).id);
    return modelName;
}

const composer = new Composer(byId("composer"), { send: (text) => chat.send(text), stop: () => chat.stop() });
const view = new ChatView({
    root: byId("chat"),
    log: byId("turns"),
    end: byId("end"),
    announcer,
    actions: { edit: (turn, text) => chat.edit(turn, text), retry: (turn) => chat.retry(turn) },
    onBusy: (isBusy) => composer.setBusy(isBusy),
});
const chat = new Chat({
    server,
    settings,
    conversation: new Conversation(),
    view,
    askForKey,
    model,
});

byId("new-chat").addEventListener("click", () => {
    chat.clear();
    composer.focus();
});
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
byId("close-settings").addEventListener("click", () => byId("settings").close());
byId("change-key").addEventListener("click", () => askForKey("The key is kept in this tab, until it is closed."));
for (const suggestion of document.querySelectorAll("#suggestions button")) {
    suggestion.addEventListener("click", () => chat.send(suggestion.textContent));
}
document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented && document.querySelector("dialog[open]") === null)
        chat.stop();
});

feed.start();
model().catch(() => {}); // the feed tells what is wrong; the first message asks again
composer.focus();
