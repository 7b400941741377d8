/** Runs in a thread of its own (`copy-threads.ts`). */

import { answerQuestions } from "../threads/thread-side.js";
import { CopyService } from "./copy-service.js";

answerQuestions(new CopyService());
