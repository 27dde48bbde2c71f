// Checks that everything of the page has arrived, and says so in the title.
"use strict";

function report(text) {
  document.title = text;
}

function echo() {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${location.host}/api/echo`);
    const long = "x".repeat(100000);
    const sent = ["hello", long];
    socket.onopen = () => sent.forEach((text) => socket.send(text));
    socket.onmessage = (event) => {
      if (event.data !== sent.shift()) {
        reject(new Error("the echo differs"));
      } else if (sent.length === 0) {
        socket.close();
        resolve();
      }
    };
    socket.onerror = () => reject(new Error("the WebSocket failed"));
  });
}

async function check() {
  const color = getComputedStyle(document.getElementById("styled")).color;
  if (color !== "rgb(1, 2, 3)") throw new Error("style: " + color);
  const picture = document.getElementById("picture");
  await picture.decode();
  if (picture.naturalWidth !== 1) throw new Error("the picture is not there");
  const text = await (await fetch("/text.txt")).text();
  if (!text.startsWith("line 0 ")) throw new Error("text");
  const part = await fetch("/data.bin", { headers: { range: "bytes=0-9" } });
  if (part.status !== 206 || (await part.arrayBuffer()).byteLength !== 10) throw new Error("range");
  const answer = await (await fetch("/api/request", { method: "POST", body: "from a browser" })).text();
  if (!answer.includes("body 14")) throw new Error("proxy: " + answer);
  await echo();
  return "all there";
}

// A headless browser is done when the page is loaded, which it is not before the backend has answered `/api/hold`: after `/api/release`.
check()
  .then(report, (error) => report("FAILURE: " + error.message))
  .finally(() => fetch("/api/release"));
