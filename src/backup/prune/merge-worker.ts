/** The script of the threads that `merge-threads.ts` starts. */

import { answerQuestions } from "../threads/thread-side.js";
import { MergeService } from "./merge-service.js";

answerQuestions(new MergeService());
