"use strict";
// Videos play on a click, or all at once, and a line follows the longer one through its plot.
// Without this script they have the browser's own controls.
(() => {
  const samples = [...document.querySelectorAll(".samples video")];
  const all = document.getElementById("play-all");
  const showState = () => {
    all.textContent = samples.some((video) => video.paused) ? "Play all" : "Pause all";
  };
  for (const video of samples) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "play";
    const label = () => {
      const action = video.getAttribute("aria-label");
      button.setAttribute("aria-label", `${video.paused ? "Play" : "Pause"} ${action}`);
      showState();
    };
    button.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
    video.addEventListener("play", label);
    video.addEventListener("pause", label);
    video.controls = false;
    video.after(button);
    label();
  }
  all.parentElement.hidden = false;
  all.addEventListener("click", () => {
    const start = samples.some((video) => video.paused);
    for (const video of samples) {
      if (start) video.play();
      else video.pause();
    }
  });

  const sequence = document.getElementById("sequence");
  const playhead = document.getElementById("playhead");
  const scale = Number(playhead.dataset.scale);
  const move = () => {
    playhead.setAttribute("transform", `translate(${scale * sequence.currentTime} 0)`);
    playhead.setAttribute("visibility", "visible");
    if (!sequence.paused) requestAnimationFrame(move);
  };
  sequence.addEventListener("play", move);
  sequence.addEventListener("seeked", move);
})();
